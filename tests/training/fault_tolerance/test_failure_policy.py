"""What becomes of a run after a failure, decided by Ray Train's own error objects."""

from __future__ import annotations

import pickle

import pytest
from ray.exceptions import ActorDiedError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from stoker.errors import DatasetError
from stoker.training.fault_tolerance.failure_policy import (
    RestartRequested,
    RunFailurePolicy,
    annotate_step,
    stoker_error_in,
    summarize,
)


def failed(*causes: Exception, step: int | None = None) -> WorkerGroupError:
    wrapped = {}
    for rank, cause in enumerate(causes):
        if step is not None:
            annotate_step(cause, step)
        wrapped[rank] = UserExceptionWithTraceback(cause, "a traceback")
    found: WorkerGroupError = pickle.loads(pickle.dumps(WorkerGroupError("workers failed", wrapped)))
    return found


def decide(policy: RunFailurePolicy, error: Exception) -> str:
    return str(policy.make_decision(error).value)


def test_failures_of_workers_and_of_the_controller_share_one_budget() -> None:
    policy = RunFailurePolicy(2)
    died = WorkerGroupError("a worker died", {1: ActorDiedError()})
    assert decide(policy, died) == "RETRY"
    assert decide(policy, ControllerError(OSError("the store reset the connection"))) == "RETRY"
    assert decide(policy, died) == "RAISE"


def test_without_a_bound_no_failure_is_too_many() -> None:
    policy = RunFailurePolicy(-1)
    assert {decide(policy, ControllerError(OSError(str(n)))) for n in range(20)} == {"RETRY"}


def test_an_error_of_ours_ends_the_run_at_once_with_its_line() -> None:
    error = failed(RuntimeError("gloo: connection closed"), DatasetError("shard 3 is damaged; prepare it again"))
    assert decide(RunFailurePolicy(-1), error) == "RAISE"
    assert str(stoker_error_in(error)) == "shard 3 is damaged; prepare it again"


def test_requested_restarts_and_waiting_for_capacity_are_not_counted() -> None:
    policy = RunFailurePolicy(0)
    for error in (failed(RestartRequested("drained")), ControllerError(WorkerGroupStartupTimeoutError(2))) * 3:
        assert decide(policy, error) == "RETRY"


def test_the_same_exception_at_the_same_step_twice_ends_the_run() -> None:
    policy = RunFailurePolicy(-1)
    assert decide(policy, failed(IndexError("index 9"), step=40)) == "RETRY"
    assert decide(policy, failed(IndexError("index 9"), step=60)) == "RETRY"
    assert decide(policy, failed(IndexError("index 9"), step=60)) == "RAISE"


@pytest.mark.parametrize(
    "echo", ["[gloo/transport/tcp/pair.cc:547] Connection closed by peer", "NCCL communicator was aborted"]
)
def test_what_survivors_say_of_a_dead_rank_is_no_programming_error(echo: str) -> None:
    policy = RunFailurePolicy(-1)
    assert [decide(policy, failed(RuntimeError(echo), step=40)) for _ in range(3)] == ["RETRY"] * 3
    assert summarize(failed(RuntimeError(echo), IndexError("index 9"))) == "rank 1: IndexError: index 9"


def test_decisions_are_rays_own() -> None:
    assert isinstance(RunFailurePolicy(0).make_decision(failed(RestartRequested("x"))), FailureDecision)
