"""What becomes of a run when something in it dies: go on, or end.

A failure policy for Ray Train, so it lives in the controller; nothing here needs torch. Ray's own policy counts every
failure alike, ends the run at an error inside its controller whatever it may retry, and restarts a programming error
``max_failures`` times. Here:

=====================================================  ====================================================
a :class:`StokerError` in any rank                     the run ends at once with its one line
ranks that handed over (SIGTERM, drain, rolled back)   restart, never counted
no room for the workers yet                            wait for room, never counted
the same exception at the same step as the last time   the run ends: another attempt would do the same
anything else, in a worker or in Ray's controller      restart, ``workers.max_failures`` times
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

__all__ = ["HandedOver", "Supervision", "cause_of_ours", "forget", "note_step", "one_line", "why_started_again"]

logger = logging.getLogger(__name__)

_NO_ROOM = (WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError)
# what ranks say when another one went away: the other end of a failure, not its cause
_ECHOES = ("gloo", "nccl", "connection", "distributed", "socket", "recv", "broken pipe", "process group")

Signature = frozenset[tuple[int, str, str]]


class HandedOver(Exception):
    """All ranks stopped after a step that they agreed on, what they did is stored, and they are to be started again."""


def note_step(error: BaseException, step: int) -> None:
    """Remember on ``error`` at which step of the run it came up; survives the way to the controller."""
    error.__dict__["stoker_step"] = step


class Supervision(FailurePolicy):  # type: ignore[misc]
    """Decides after each failure; ``max_failures`` -1 is without bound.

    The workers that it starts again find out why under ``account``, a name that no other trainer
    has; without one nobody is told.
    """

    def __init__(self, max_failures: int, account: str = "") -> None:
        super().__init__(FailureConfig(max_failures=max_failures))
        self._account = account
        self._most, self._failures = max_failures, 0
        self._last: Signature = frozenset()

    def make_decision(self, training_failed_error: Exception) -> FailureDecision:
        """RETRY or RAISE; says why in the log, in one line."""
        decision, why = self._judge(training_failed_error)
        again = decision is FailureDecision.RETRY
        logger.warning("%s: %s", "starting the workers again" if again else "ending", why)
        if again and self._account:
            _note(self._account, why)
        return decision

    def _judge(self, error: Exception) -> tuple[FailureDecision, str]:
        if isinstance(error, WorkerGroupError):
            decided = self._judge_workers([_bare(failure) for failure in error.worker_failures.values()])
        elif isinstance(error, PreemptionError):
            decided = FailureDecision.RETRY, "a node is taken away"
        elif isinstance(error, ControllerError) and isinstance(error.controller_failure, _NO_ROOM):
            decided = FailureDecision.RETRY, "the cluster has no room for the workers yet"
        else:
            decided = None
        return decided or self._count(error)

    def _judge_workers(self, causes: list[BaseException]) -> tuple[FailureDecision, str] | None:
        """None: a failure like any other, to be counted."""
        if ours := next((cause for cause in causes if isinstance(cause, StokerError)), None):
            return FailureDecision.RAISE, str(ours)
        if handed_over := next((cause for cause in causes if isinstance(cause, HandedOver)), None):
            return FailureDecision.RETRY, str(handed_over)
        signature = frozenset(
            (cause.__dict__["stoker_step"], type(cause).__name__, str(cause))
            for cause in causes
            if "stoker_step" in cause.__dict__ and not _is_echo(cause)
        )
        again, self._last = signature & self._last, signature
        if again:
            step, kind, text = next(iter(again))
            return FailureDecision.RAISE, f"the same {kind} at step {step} as in the attempt before ({text})"
        return None

    def _count(self, error: Exception) -> tuple[FailureDecision, str]:
        self._failures += 1
        if 0 <= self._most < self._failures:
            return (
                FailureDecision.RAISE,
                f"{one_line(error)}; that was failure {self._failures} of {self._most} allowed",
            )
        return FailureDecision.RETRY, f"{one_line(error)}; failure {self._failures}, {self._bound} allowed"

    @property
    def _bound(self) -> str:
        return "any number" if self._most < 0 else str(self._most)


def why_started_again(account: str) -> dict[str, Any]:
    """``{"failed_at": seconds since 1970, "why": one line}`` of the last failure under ``account``; {} if none was."""
    try:
        found = _internal_kv_get(_key(account))
        return dict(json.loads(found)) if found else {}
    except (ray.exceptions.RayError, ValueError) as error:
        logger.debug("why this attempt was started is not known: %s", error)
        return {}


def forget(account: str) -> None:
    """Nobody will ask for ``account`` again."""
    with contextlib.suppress(ray.exceptions.RayError):
        _internal_kv_del(_key(account))


def _note(account: str, why: str) -> None:
    try:
        _internal_kv_put(_key(account), json.dumps({"failed_at": round(time.time(), 3), "why": why}))
    except ray.exceptions.RayError as error:
        logger.debug("the next attempt will not know why it was started: %s", error)


def _key(account: str) -> bytes:
    return f"stoker/failure/{account}".encode()


def cause_of_ours(error: BaseException) -> StokerError | None:
    """The error of ours that ended the workers, if one did."""
    for failure in getattr(error, "worker_failures", {}).values():
        cause: BaseException | None = _bare(failure)
        while cause is not None:
            if isinstance(cause, StokerError):
                return cause
            cause = cause.__cause__
    return None


def one_line(error: BaseException) -> str:
    """The first worker's failure, or the error itself, in at most 300 characters."""
    failures = getattr(error, "worker_failures", {})
    causes = {rank: _bare(failure) for rank, failure in failures.items()}
    chosen = sorted(causes.items(), key=lambda entry: (_is_echo(entry[1]), entry[0]))
    if not chosen:
        return " ".join(f"{type(error).__name__}: {error}".split())[:300]
    rank, cause = chosen[0]
    return " ".join(f"rank {rank}: {type(cause).__name__}: {cause}".split())[:300]


def _bare(failure: BaseException) -> BaseException:
    """The exception itself, without what Ray wraps around it."""
    inner = getattr(failure, "_base_exc", None)
    return inner if isinstance(inner, BaseException) else failure


def _is_echo(error: BaseException) -> bool:
    text = f"{type(error).__module__} {type(error).__name__} {error}".lower()
    return any(word in text for word in _ECHOES)
