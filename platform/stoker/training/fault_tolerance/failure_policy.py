"""Failure policy of a run: restart the workers, leave a node out, or stop.

It runs in Ray Train's controller; nothing here needs torch. Ray's own policy counts every failure alike, stops the run
at an error inside its controller whatever its retry budget, and restarts after a programming error ``max_failures``
times. Here a failure is the run's own, its node's, or anybody's, judged by the types and codes of the exceptions
(``circumstances``), never by the words in them:

=======================================================  ==============================================================
ours: a :class:`StokerError` in any rank, or a request   stop at once, with its one line
  beyond what the cluster may ever have
ours: the same exception at the same step twice          stop: another attempt would fail the same way
the node's: its GPU, its disk, or its way to a store     leave that node out for the rest of the run and restart, not
  that answers the controller                            counted; counted, with the node, if the run needs it
ranks that asked to restart (SIGTERM, drain, rollback),  restart, not counted
  a node taken back by its cloud
no room for the workers within Ray's time-out            wait for it, not counted; says if no node could ever have it
anybody's: all else, a worker that dies while it starts  restart, at most ``workers.max_failures`` times
  among it, and an error in Ray's controller
=======================================================  ==============================================================
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from ray.train import FailureConfig
from ray.train.v2._internal.exceptions import InsufficientClusterResourcesError, WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.failure_handling import FailureDecision, FailurePolicy
from ray.train.v2.api.exceptions import ControllerError, PreemptionError, WorkerGroupError

from stoker.errors import StokerError, StorageTimeout
from stoker.training.fault_tolerance import head
from stoker.training.fault_tolerance.circumstances import circumstances_of

__all__ = [
    "RestartRequested",
    "RunFailurePolicy",
    "forget_restart_reason",
    "restart_reason",
    "stoker_error_in",
    "summarize",
]

logger = logging.getLogger(__name__)

_NODES_ALIKE = 3
"""nodes that may fail in the same way before that is the run's fault, or its image's, as much as anybody's"""

Signature = frozenset[tuple[int, str, str]]
Decision = tuple[FailureDecision, str]


class RestartRequested(Exception):
    """All ranks stopped after a step that they agreed on, their work is stored, and they need to be restarted."""


class RunFailurePolicy(FailurePolicy):  # type: ignore[misc]
    """Decides after each failure; ``max_failures`` -1 is unlimited.

    The restarted workers find the reason under ``attempt``, a key that no other trainer uses (:func:`restart_reason`);
    an empty key records nothing. ``leave_out`` leaves out the node of an id, if
    the run can do without it. ``reaches_stores`` says whether the place at a
    URL answers here; ``no_room`` describes a worker for which no node is large enough, and is empty otherwise.
    """

    def __init__(
        self,
        max_failures: int,
        attempt: str = "",
        *,
        leave_out: Callable[[str], bool] = lambda _: False,
        reaches_stores: Callable[[str], bool] = lambda _: False,
        no_room: Callable[[], str] = lambda: "",
    ) -> None:
        super().__init__(FailureConfig(max_failures=max_failures))
        self._attempt = attempt
        self._max_failures, self._failures = max_failures, 0
        self._leave_out, self._reaches_stores, self._no_room = leave_out, reaches_stores, no_room
        self._lost_way_at = -2  # the step; -1 before the first
        self._of_nodes: dict[str, int] = {}  # by what failed: how many nodes
        self._last: Signature = frozenset()

    def make_decision(self, training_failed_error: Exception) -> FailureDecision:
        """RETRY or RAISE; logs the reason in one line."""
        decision, reason = self._decide(training_failed_error)
        restarts = decision is FailureDecision.RETRY
        logger.warning("%s: %s", "restarting the workers" if restarts else "stopping the run", reason)
        if restarts and self._attempt:
            head.write(_key(self._attempt), {"failed_at": round(time.time(), 3), "why": reason})
        return decision

    def _decide(self, error: Exception) -> Decision:
        decided = None
        if isinstance(error, WorkerGroupError):
            decided = self._decide_for_workers(list(error.worker_failures.values()))
        elif isinstance(error, PreemptionError):
            decided = FailureDecision.RETRY, "a node is being preempted"
        elif isinstance(error, ControllerError):
            decided = self._decide_for_controller(error.controller_failure)
        return decided or self._count(summarize(error))

    def _decide_for_controller(self, failure: Exception) -> Decision | None:
        if isinstance(failure, WorkerGroupStartupTimeoutError):
            why = self._no_room()
            return FailureDecision.RETRY, "the cluster has no room for the workers" + (f": {why}" if why else " now")
        if isinstance(failure, InsufficientClusterResourcesError):
            return FailureDecision.RAISE, " ".join(str(failure).split())
        if _is_preempted(failure):
            return FailureDecision.RETRY, "a node was preempted"
        return self._decide_for_workers([failure])  # it may have been raised in a worker, as its group was formed

    def _decide_for_workers(self, failures: list[Exception]) -> Decision | None:
        """None for a failure that is neither final nor free, and so is counted."""
        causes = [_unwrap(failure) for failure in failures]
        if ours := next(
            (cause for cause in causes if isinstance(cause, StokerError) and not _fails_there(cause)), None
        ):
            return self._without_a_way_to_the_store(ours) or (FailureDecision.RAISE, str(ours))
        if requested := next((cause for cause in causes if isinstance(cause, RestartRequested)), None):
            return FailureDecision.RETRY, str(requested)
        if any(_is_preempted(failure) for failure in failures):
            return FailureDecision.RETRY, "a node was preempted"
        if found := self._of_a_node(causes):
            return found
        signature = _signature(causes)
        repeated, self._last = signature & self._last, signature
        if repeated:
            step, kind, text = next(iter(repeated))
            return FailureDecision.RAISE, f"the same {kind} at step {step} as in the previous attempt ({text})"
        return None

    def _of_a_node(self, causes: list[BaseException]) -> Decision | None:
        for cause in causes:
            where = circumstances_of(cause)
            if where is None or not where.of_node:
                continue
            what = f"{where.of_node} on node {where.host or where.node}"
            kind = where.of_node.partition(" (")[0]
            self._of_nodes[kind] = self._of_nodes.get(kind, 0) + 1
            if self._of_nodes[kind] > _NODES_ALIKE:
                return self._count(
                    f"{what}, and the same on {_NODES_ALIKE} nodes before: it is hardly the nodes' fault"
                )
            if self._leave_out(where.node):
                return FailureDecision.RETRY, f"{what}; the node is left out for the rest of the run"
            return self._count(f"{what}, which the run cannot do without")
        return None

    def _without_a_way_to_the_store(self, ours: StokerError) -> Decision | None:
        """For a rank that got no answer from a store that answers here.

        If it happens again without the nodes that were left out, at a step that was reached before, it is the store's.
        """
        where = circumstances_of(ours)
        if not isinstance(ours, StorageTimeout) or where is None:
            return None
        step = -1 if where.step is None else where.step
        if step <= self._lost_way_at or not self._reaches_stores(ours.url) or not self._leave_out(where.node):
            return None
        self._lost_way_at = step
        line = f"node {where.host or where.node} does not reach the store, which answers here ({ours})"
        return FailureDecision.RETRY, f"{line}; the node is left out for the rest of the run"

    def _count(self, what: str) -> Decision:
        self._failures += 1
        if 0 <= self._max_failures < self._failures:
            return FailureDecision.RAISE, f"{what}; that was failure {self._failures} of {self._max_failures} allowed"
        allowed = "any number" if self._max_failures < 0 else str(self._max_failures)
        return FailureDecision.RETRY, f"{what}; failure {self._failures}, {allowed} allowed"


def _is_preempted(failure: BaseException | None) -> bool:
    """Whether Ray knows that the worker's node was taken back, of which the controller's poll wraps the error."""
    while failure is not None:
        if getattr(failure, "preempted", False):
            return True
        failure = getattr(failure, "health_check_failure", None) or failure.__cause__
    return False


def _fails_there(cause: BaseException) -> bool:
    """Whether something of the node failed."""
    where = circumstances_of(cause)
    return where is not None and bool(where.of_node)


def _signature(causes: list[BaseException]) -> Signature:
    """What another attempt would repeat: the exceptions of the ranks, if all of them lived to raise one.

    Where a worker was killed or lost, what the others raised follows from that.
    """
    told = [(cause, circumstances_of(cause)) for cause in causes]
    if any(where is None for _, where in told):
        return frozenset()
    return frozenset(
        (where.step, type(cause).__name__, str(cause))
        for cause, where in told
        if where is not None and where.step is not None and not where.is_echo
    )


def restart_reason(attempt: str) -> dict[str, Any]:
    """``{"failed_at": seconds since 1970, "why": one line}`` of the last failure under ``attempt``; {} if none."""
    return head.read(_key(attempt)) or {}


def forget_restart_reason(attempt: str) -> None:
    """Delete what is recorded under ``attempt``."""
    head.forget(_key(attempt))


def _key(attempt: str) -> str:
    return f"failure/{attempt}"


def stoker_error_in(error: BaseException) -> StokerError | None:
    """The :class:`StokerError` that ended the workers, or None."""
    for failure in getattr(error, "worker_failures", {}).values():
        cause: BaseException | None = _unwrap(failure)
        while cause is not None:
            if isinstance(cause, StokerError):
                return cause
            cause = cause.__cause__
    return None


def summarize(error: BaseException) -> str:
    """One line of at most 300 characters: the worker whose failure the others followed, or the error itself.

    That is one that was killed or lost, else one with an exception of its own.
    """
    failures = getattr(error, "worker_failures", {})
    causes = {rank: _unwrap(failure) for rank, failure in failures.items()}
    ordered = sorted(causes.items(), key=lambda entry: (_follows(entry[1]), entry[0]))
    if not ordered:
        inner = getattr(error, "controller_failure", error)
        started = inner.__cause__ if inner.__cause__ is not None else inner
        cause = _unwrap(started if isinstance(started, Exception) else inner)
        return " ".join(f"{type(cause).__name__}: {cause}".split())[:300]
    rank, cause = ordered[0]
    return " ".join(f"rank {rank}: {type(cause).__name__}: {cause}".split())[:300]


def _unwrap(failure: BaseException) -> BaseException:
    """The exception as it was raised, without Ray's wrapper."""
    for inner in (getattr(failure, "_base_exc", None), getattr(failure, "cause", None)):
        if isinstance(inner, BaseException):
            return inner
    return failure


def _follows(error: BaseException) -> int:
    """How probable it is that ``error`` follows from another rank's: gloo has no type of its own for that."""
    where = circumstances_of(error)
    return 0 if where is None else 2 if where.is_echo else int(type(error) is RuntimeError)
