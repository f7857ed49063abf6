"""What becomes of a run after a failure, decided by Ray Train's own error objects."""

from __future__ import annotations

import errno
import pickle
from dataclasses import asdict

import pytest
import torch
from ray.exceptions import ActorDiedError, RayTaskError
from ray.train.v2._internal.exceptions import (
    InsufficientClusterResourcesError,
    UserExceptionWithTraceback,
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckTimeoutError,
)
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from stoker.errors import DatasetError, StorageError, StorageTimeout
from stoker.training.fault_tolerance import circumstances
from stoker.training.fault_tolerance.circumstances import Circumstances, NodeError, annotate, circumstances_of
from stoker.training.fault_tolerance.failure_policy import (
    RestartRequested,
    RunFailurePolicy,
    stoker_error_in,
    summarize,
)


def failed(*causes: Exception, step: int | None = None, node: str = "n1") -> WorkerGroupError:
    """The ranks raised ``causes`` at ``step`` on ``node``; those of Ray's own are workers that were lost."""
    failures: dict[int, Exception] = {}
    for rank, cause in enumerate(causes):
        is_lost = isinstance(cause, ActorDiedError | WorkerHealthCheckTimeoutError)
        failures[rank] = cause if is_lost else UserExceptionWithTraceback(raised(cause, step, node), "a traceback")
    found: WorkerGroupError = pickle.loads(pickle.dumps(WorkerGroupError("workers failed", failures)))
    return found


def raised(cause: Exception, step: int | None = None, node: str = "n1") -> Exception:
    annotate(cause, step)
    attached = circumstances_of(cause)
    assert attached is not None
    cause.__dict__[circumstances._KEY] = asdict(attached) | {"node": node, "host": f"host-{node}"}
    return cause


def cuda_error(code: int) -> Exception:
    error = torch.AcceleratorError("CUDA error: see the code")
    error.error_code = code
    return error


class Nodes:
    """A cluster that can spare some nodes."""

    def __init__(self, spare: int) -> None:
        self.spare, self.left_out = spare, list[str]()

    def add(self, node: str) -> bool:
        if len(self.left_out) == self.spare:
            return False
        self.left_out.append(node)
        return True


def decide(policy: RunFailurePolicy, error: Exception) -> str:
    return str(policy.make_decision(error).value)


def reason(policy: RunFailurePolicy, error: Exception, caplog: pytest.LogCaptureFixture) -> str:
    """The decision and its one line."""
    caplog.clear()
    with caplog.at_level("WARNING"):
        policy.make_decision(error)
    (line,) = caplog.messages
    assert "\n" not in line
    return line


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


def test_requested_restarts_and_waiting_for_room_are_not_counted() -> None:
    policy = RunFailurePolicy(0)
    taken_back = ActorDiedError()
    taken_back._preempted = True
    for error in (
        failed(RestartRequested("drained")),
        ControllerError(WorkerGroupStartupTimeoutError(2)),
        failed(taken_back, RuntimeError("connection closed")),
    ) * 3:
        assert decide(policy, error) == "RETRY"


def test_a_worker_that_dies_while_it_starts_counts_and_is_named() -> None:
    policy = RunFailurePolicy(1)
    started = WorkerGroupStartupFailedError("One of the worker actors failed to initialize")
    started.__cause__ = ActorDiedError()
    assert decide(policy, ControllerError(started)) == "RETRY"
    assert decide(policy, ControllerError(started)) == "RAISE"
    assert summarize(ControllerError(started)).startswith("ActorDiedError: The actor died unexpectedly")


def test_without_room_the_nearest_node_is_said(caplog: pytest.LogCaptureFixture) -> None:
    policy = RunFailurePolicy(0, no_room=lambda: "a worker asks for 8 CPU, and the node that comes nearest has 4 CPU")
    said = reason(policy, ControllerError(WorkerGroupStartupTimeoutError(2)), caplog)
    assert said.endswith("no room for the workers: a worker asks for 8 CPU, and the node that comes nearest has 4 CPU")


def test_what_no_cluster_of_these_types_can_have_ends_the_run() -> None:
    asked = InsufficientClusterResourcesError('requires {"GPU": 64} but the cluster only has a maximum of {"GPU": 8}')
    assert decide(RunFailurePolicy(-1), ControllerError(asked)) == "RAISE"


def test_the_same_exception_at_the_same_step_twice_ends_the_run() -> None:
    policy = RunFailurePolicy(-1)
    assert decide(policy, failed(IndexError("index 9"), step=40)) == "RETRY"
    assert decide(policy, failed(IndexError("index 9"), step=60)) == "RETRY"
    assert decide(policy, failed(IndexError("index 9"), step=60)) == "RAISE"


@pytest.mark.parametrize("lost", [ActorDiedError(), WorkerHealthCheckTimeoutError("no answer")])
def test_what_the_others_raise_when_a_rank_is_lost_is_no_programming_error(lost: Exception) -> None:
    policy = RunFailurePolicy(-1)
    closed = [failed(RuntimeError("closed by peer"), lost, step=40) for _ in range(3)]
    assert [decide(policy, error) for error in closed] == ["RETRY"] * 3
    assert summarize(closed[0]).startswith(f"rank 1: {type(lost).__name__}")


def test_an_error_of_the_process_group_is_no_programming_error_and_not_the_cause() -> None:
    policy = RunFailurePolicy(-1)
    aborted = torch.distributed.DistBackendError("NCCL communicator was aborted")
    assert [decide(policy, failed(aborted, step=40)) for _ in range(3)] == ["RETRY"] * 3
    assert summarize(failed(aborted, IndexError("index 9"))) == "rank 1: IndexError: index 9"
    assert summarize(failed(RuntimeError("closed"), IndexError("index 9"))) == "rank 1: IndexError: index 9"


@pytest.mark.parametrize(
    ("failure", "what"),
    [
        (cuda_error(214), "CUDA error 214, an ECC error that cannot be corrected"),
        (OSError(errno.ENOSPC, "No space left on device", "/cache/x"), "No space left on device (/cache/x)"),
        (NodeError("torch finds no usable GPU"), "torch finds no usable GPU"),
    ],
)
def test_a_failure_of_the_node_leaves_it_out_and_is_not_counted(
    failure: Exception, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    nodes = Nodes(spare=2)
    policy = RunFailurePolicy(0, leave_out=nodes.add)
    for node in ("n1", "n2"):
        lost = failed(RuntimeError("closed"), failure, ActorDiedError(), step=40, node=node)
        failure.__dict__.pop(circumstances._KEY)
        said = reason(policy, lost, caplog)
        assert (
            said == f"restarting the workers: {what} on node host-{node}; the node is left out for the rest of the run"
        )
    assert nodes.left_out == ["n1", "n2"]
    said = reason(policy, failed(failure, step=40, node="n3"), caplog)
    assert said.startswith(
        f"stopping the run: {what} on node host-n3, which the run cannot do without; that was failure 1"
    )


def test_a_failure_of_the_node_is_none_of_the_program_however_often() -> None:
    policy = RunFailurePolicy(-1, leave_out=Nodes(spare=0).add)
    assert [decide(policy, failed(cuda_error(214), step=40)) for _ in range(3)] == ["RETRY"] * 3


@pytest.mark.parametrize("code", [700, 710, 719, None])
def test_a_kernels_own_mistake_is_not_the_nodes(code: int | None) -> None:
    nodes = Nodes(spare=9)
    error = cuda_error(code) if code else OSError(errno.ENOENT, "no such file")
    assert decide(RunFailurePolicy(0, leave_out=nodes.add), failed(error, step=1)) == "RAISE"
    assert nodes.left_out == []


def test_what_a_device_error_was_raised_as_still_is_the_nodes() -> None:
    outer = RuntimeError("the loader's thread failed")
    outer.__cause__ = cuda_error(220)
    nodes = Nodes(spare=1)
    assert decide(RunFailurePolicy(0, leave_out=nodes.add), failed(outer)) == "RETRY"
    assert nodes.left_out == ["n1"]


def test_an_error_of_ours_is_the_nodes_if_its_device_failed_but_not_for_a_full_store() -> None:
    for cause, decision in ((cuda_error(214), "RETRY"), (OSError(errno.ENOSPC, "No space left on device"), "RAISE")):
        ours = DatasetError("sample 7 cannot be decoded")
        ours.__cause__ = cause
        assert decide(RunFailurePolicy(0, leave_out=Nodes(spare=1).add), failed(ours, step=1)) == decision


def test_a_failure_as_the_group_is_formed_is_judged_as_one_of_its_workers() -> None:
    nodes = Nodes(spare=1)
    in_a_worker = RayTaskError("join", "a traceback", raised(NodeError("no usable GPU")))
    assert decide(RunFailurePolicy(0, leave_out=nodes.add), ControllerError(in_a_worker)) == "RETRY"
    assert nodes.left_out == ["n1"]


def test_a_node_without_a_way_to_the_store_is_left_out_if_the_store_answers_elsewhere() -> None:
    silent = StorageTimeout("cannot read s3://b/x: no valid response in 120 s", url="s3://b/x")
    for answers, kind, decision in (
        (True, silent, "RETRY"),
        (False, silent, "RAISE"),
        (True, StorageError("not permitted to read s3://b/x", url="s3://b/x"), "RAISE"),
    ):
        nodes = Nodes(spare=3)
        policy = RunFailurePolicy(0, leave_out=nodes.add, reaches_stores=lambda _, answers=answers: answers)  # type: ignore[misc]
        assert decide(policy, failed(kind, step=40)) == decision
        assert nodes.left_out == (["n1"] if decision == "RETRY" else [])


def test_a_store_that_is_silent_again_before_any_progress_ends_the_run() -> None:
    def silent() -> StorageTimeout:
        return StorageTimeout("cannot write s3://b/x: no valid response in 120 s", url="s3://b/x")

    policy = RunFailurePolicy(0, leave_out=Nodes(spare=9).add, reaches_stores=lambda _: True)
    decisions = [decide(policy, failed(silent(), step=step)) for step in (None, 40, 900, 900)]
    assert decisions == ["RETRY", "RETRY", "RETRY", "RAISE"]


def test_what_a_rank_attaches_survives_pickling_and_is_attached_once() -> None:
    error = raised(IndexError("index 9"), 11)
    annotate(error, 12)
    again = pickle.loads(pickle.dumps(error))
    assert circumstances_of(again) == Circumstances(step=11, node="n1", host="host-n1")


def test_decisions_are_rays_own() -> None:
    assert isinstance(RunFailurePolicy(0).make_decision(failed(RestartRequested("x"))), FailureDecision)
