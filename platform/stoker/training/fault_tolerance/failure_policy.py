"""Failure policy of a run: restart the workers, or stop.

It runs in Ray Train's controller; nothing here needs torch. Ray's own policy counts every failure alike, stops the run
at an error inside its controller whatever its retry budget, and restarts after a programming error ``max_failures``
times. Here:

=====================================================  ====================================================
a :class:`StokerError` in any rank                     stop at once, with its one-line message
ranks that asked to restart (SIGTERM, drain, rollback) restart, not counted
too little free capacity to start the workers          wait for capacity, not counted
the same exception at the same step as last time       stop: another attempt would fail the same way
anything else, in a worker or in Ray's controller      restart, at most ``workers.max_failures`` times
=====================================================  ====================================================
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from typing import Any

import ray
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put
from ray.train import FailureConfig
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.failure_handling import FailureDecision, FailurePolicy
from ray.train.v2.api.exceptions import ControllerError, PreemptionError, WorkerGroupError

from stoker.errors import StokerError

__all__ = [
    "RestartRequested",
    "RunFailurePolicy",
    "annotate_step",
    "forget_restart_reason",
    "restart_reason",
    "stoker_error_in",
    "summarize",
]

logger = logging.getLogger(__name__)

_NO_CAPACITY = (WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError)
# what the surviving ranks raise when another one dies: a consequence of the failure, not its cause
_CONSEQUENCES = ("gloo", "nccl", "connection", "distributed", "socket", "recv", "broken pipe", "process group")

Signature = frozenset[tuple[int, str, str]]


class RestartRequested(Exception):
    """All ranks stopped after a step that they agreed on, their work is stored, and they need to be restarted."""


def annotate_step(error: BaseException, step: int) -> None:
    """Record on ``error`` the run's step at which it was raised; survives pickling on the way to the controller."""
    error.__dict__["stoker_step"] = step


class RunFailurePolicy(FailurePolicy):  # type: ignore[misc]
    """Decides after each failure; ``max_failures`` -1 is unlimited.

    The restarted workers find the reason under ``attempt``, a key that no other trainer uses (:func:`restart_reason`);
    an empty key records nothing.
    """

    def __init__(self, max_failures: int, attempt: str = "") -> None:
        super().__init__(FailureConfig(max_failures=max_failures))
        self._attempt = attempt
        self._max_failures, self._failures = max_failures, 0
        self._last: Signature = frozenset()

    def make_decision(self, training_failed_error: Exception) -> FailureDecision:
        """RETRY or RAISE; logs the reason in one line."""
        decision, reason = self._decide(training_failed_error)
        restarts = decision is FailureDecision.RETRY
        logger.warning("%s: %s", "restarting the workers" if restarts else "stopping the run", reason)
        if restarts and self._attempt:
            _record_reason(self._attempt, reason)
        return decision

    def _decide(self, error: Exception) -> tuple[FailureDecision, str]:
        if isinstance(error, WorkerGroupError):
            decided = self._decide_for_workers([_unwrap(failure) for failure in error.worker_failures.values()])
        elif isinstance(error, PreemptionError):
            decided = FailureDecision.RETRY, "a node is being preempted"
        elif isinstance(error, ControllerError) and isinstance(error.controller_failure, _NO_CAPACITY):
            decided = FailureDecision.RETRY, "the cluster has too little free capacity for the workers"
        else:
            decided = None
        return decided or self._count(error)

    def _decide_for_workers(self, causes: list[BaseException]) -> tuple[FailureDecision, str] | None:
        """None for a failure that is neither final nor free, and so is counted."""
        if ours := next((cause for cause in causes if isinstance(cause, StokerError)), None):
            return FailureDecision.RAISE, str(ours)
        if requested := next((cause for cause in causes if isinstance(cause, RestartRequested)), None):
            return FailureDecision.RETRY, str(requested)
        signature = frozenset(
            (cause.__dict__["stoker_step"], type(cause).__name__, str(cause))
            for cause in causes
            if "stoker_step" in cause.__dict__ and not _is_consequence(cause)
        )
        repeated, self._last = signature & self._last, signature
        if repeated:
            step, kind, text = next(iter(repeated))
            return FailureDecision.RAISE, f"the same {kind} at step {step} as in the previous attempt ({text})"
        return None

    def _count(self, error: Exception) -> tuple[FailureDecision, str]:
        self._failures += 1
        if 0 <= self._max_failures < self._failures:
            return (
                FailureDecision.RAISE,
                f"{summarize(error)}; that was failure {self._failures} of {self._max_failures} allowed",
            )
        allowed = "any number" if self._max_failures < 0 else str(self._max_failures)
        return FailureDecision.RETRY, f"{summarize(error)}; failure {self._failures}, {allowed} allowed"


def restart_reason(attempt: str) -> dict[str, Any]:
    """``{"failed_at": seconds since 1970, "why": one line}`` of the last failure under ``attempt``; {} if none."""
    try:
        stored = _internal_kv_get(_key(attempt))
        return dict(json.loads(stored)) if stored else {}
    except (ray.exceptions.RayError, ValueError) as error:
        logger.debug("the reason for this restart is unknown: %s", error)
        return {}


def forget_restart_reason(attempt: str) -> None:
    """Delete what is recorded under ``attempt``."""
    with contextlib.suppress(ray.exceptions.RayError):
        _internal_kv_del(_key(attempt))


def _record_reason(attempt: str, reason: str) -> None:
    try:
        _internal_kv_put(_key(attempt), json.dumps({"failed_at": round(time.time(), 3), "why": reason}))
    except ray.exceptions.RayError as error:
        logger.debug("the next attempt will not know why it was started: %s", error)


def _key(attempt: str) -> bytes:
    return f"stoker/failure/{attempt}".encode()


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
    """One line of at most 300 characters: the first failed worker's exception, or the error itself."""
    failures = getattr(error, "worker_failures", {})
    causes = {rank: _unwrap(failure) for rank, failure in failures.items()}
    ordered = sorted(causes.items(), key=lambda entry: (_is_consequence(entry[1]), entry[0]))
    if not ordered:
        return " ".join(f"{type(error).__name__}: {error}".split())[:300]
    rank, cause = ordered[0]
    return " ".join(f"rank {rank}: {type(cause).__name__}: {cause}".split())[:300]


def _unwrap(failure: BaseException) -> BaseException:
    """The exception as it was raised, without Ray's wrapper."""
    inner = getattr(failure, "_base_exc", None)
    return inner if isinstance(inner, BaseException) else failure


def _is_consequence(error: BaseException) -> bool:
    text = f"{type(error).__module__} {type(error).__name__} {error}".lower()
    return any(word in text for word in _CONSEQUENCES)
