"""What the failure policy says and records, to the letter, and what Ray's head keeps of it."""

from __future__ import annotations

import json

import pytest
from ray.exceptions import ActorDiedError, GetTimeoutError
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)
from ray.train.v2.api.exceptions import ControllerError, PreemptionError, WorkerGroupError
from ray.train.v2.api.preemption import PreemptionInfo

from stoker.errors import StorageTimeout
from stoker.training.fault_tolerance import head as heads
from stoker.training.fault_tolerance.failure_policy import (
    RestartRequested,
    RunFailurePolicy,
    forget_restart_reason,
    restart_reason,
)
from training.fault_tolerance.test_failure_policy import Nodes, cuda_error, failed, reason

DIED = WorkerGroupError("a worker died", {1: ActorDiedError()})
WHAT = "rank 1: ActorDiedError: The actor died unexpectedly before finishing this task."


class Head(dict[bytes, bytes]):
    """The store of keys in Ray's head."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.is_away = False
        monkeypatch.setattr(heads, "_internal_kv_get", self._get)
        monkeypatch.setattr(heads, "_internal_kv_put", self._put)
        monkeypatch.setattr(heads, "_internal_kv_del", self._delete)

    def _get(self, key: bytes) -> bytes | None:
        self._answer()
        return self.get(key)

    def _put(self, key: bytes, value: str) -> None:
        self._answer()
        self[key] = value.encode()

    def _delete(self, key: bytes) -> None:
        self._answer()
        self.pop(key, None)

    def _answer(self) -> None:
        if self.is_away:
            raise GetTimeoutError("the head does not answer")


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Head:
    return Head(monkeypatch)


@pytest.mark.parametrize(
    ("allowed", "lines"),
    [
        (0, [f"stopping the run: {WHAT}; that was failure 1 of 0 allowed"]),
        (
            1,
            [
                f"restarting the workers: {WHAT}; failure 1, 1 allowed",
                f"stopping the run: {WHAT}; that was failure 2 of 1 allowed",
            ],
        ),
        (-1, [f"restarting the workers: {WHAT}; failure {n}, any number allowed" for n in (1, 2)]),
    ],
)
def test_a_counted_failure_says_how_many_are_allowed(
    allowed: int, lines: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    policy = RunFailurePolicy(allowed)
    assert [reason(policy, DIED, caplog) for _ in lines] == lines


def test_free_restarts_say_why(caplog: pytest.LogCaptureFixture) -> None:
    taken_back = ActorDiedError()
    taken_back._preempted = True
    as_polled = WorkerGroupError("a worker died", {0: WorkerHealthCheckFailedError("it died", failure=taken_back)})
    starting = WorkerGroupStartupFailedError("one failed to start")
    starting.__cause__ = taken_back
    preempted = PreemptionError(PreemptionInfo(None, {"n": [0]}))
    for error, said in (
        (ControllerError(WorkerGroupStartupTimeoutError(2)), "the cluster has no room for the workers now"),
        (failed(RestartRequested("its ranks were asked to")), "its ranks were asked to"),
        (failed(taken_back), "a node was preempted"),
        (as_polled, "a node was preempted"),
        (ControllerError(starting), "a node was preempted"),
        (preempted, "a node is being preempted"),
    ):
        assert reason(RunFailurePolicy(0), error, caplog) == f"restarting the workers: {said}"


def test_a_repeated_exception_is_quoted(caplog: pytest.LogCaptureFixture) -> None:
    policy = RunFailurePolicy(-1)
    reason(policy, failed(IndexError("index 9"), step=60), caplog)
    said = reason(policy, failed(IndexError("index 9"), step=60), caplog)
    assert said == "stopping the run: the same IndexError at step 60 as in the previous attempt (index 9)"


def test_nodes_that_all_fail_alike_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    policy = RunFailurePolicy(0, leave_out=Nodes(spare=99).add)
    for number in range(3):
        said = reason(policy, failed(cuda_error(35), step=None, node=f"n{number}"), caplog)
        assert said.endswith("the node is left out for the rest of the run")
    assert "the node is left out" in reason(policy, failed(cuda_error(214), node="n8"), caplog)
    assert reason(policy, failed(cuda_error(35), node="n9"), caplog) == (
        "stopping the run: CUDA error 35, the driver is too old on node host-n9, and the same on 3 nodes before: it is "
        "hardly the nodes' fault; that was failure 1 of 0 allowed"
    )


def test_a_node_without_a_way_to_the_store_is_named_with_what_was_asked(caplog: pytest.LogCaptureFixture) -> None:
    silent = StorageTimeout("cannot read s3://b/x: no valid response in 120 s", url="s3://b/x")
    policy = RunFailurePolicy(0, leave_out=Nodes(spare=1).add, reaches_stores=lambda _: True)
    assert reason(policy, failed(silent, step=0), caplog) == (
        "restarting the workers: node host-n1 does not reach the store, which answers here (cannot read s3://b/x: no "
        "valid response in 120 s); the node is left out for the rest of the run"
    )


def test_by_itself_a_policy_spares_no_node_and_asks_no_store() -> None:
    silent = StorageTimeout("cannot read s3://b/x", url="s3://b/x")
    for error in (failed(silent, step=3), failed(cuda_error(214), step=3)):
        assert str(RunFailurePolicy(0).make_decision(error).value) == "RAISE"
        assert str(
            RunFailurePolicy(0, leave_out=Nodes(spare=0).add, reaches_stores=lambda _: True).make_decision(error).value
        ) == ("RAISE")


def test_the_restarted_workers_find_the_reason_until_it_is_forgotten(head: Head) -> None:
    assert restart_reason("run-a.1") == {}
    RunFailurePolicy(1, "run-a.1").make_decision(DIED)
    RunFailurePolicy(0, "run-b.1").make_decision(DIED)  # it ends: nobody is restarted
    RunFailurePolicy(1).make_decision(DIED)
    assert list(head) == [b"stoker/failure/run-a.1"]
    stored = json.loads(head[b"stoker/failure/run-a.1"])
    assert restart_reason("run-a.1") == stored
    assert stored["why"] == f"{WHAT}; failure 1, 1 allowed"
    assert stored["failed_at"] == round(stored["failed_at"], 3) > 1.7e9
    forget_restart_reason("run-a.1")
    assert not head


def test_the_head_says_whether_it_keeps_a_value(head: Head) -> None:
    assert heads.write("a/b", ["n1"]) is True
    assert heads.read("a/b") == ["n1"]
    head.is_away = True
    assert heads.write("a/b", ["n2"]) is False
    head.is_away = False
    assert heads.read("a/b") == ["n1"]


def test_a_head_that_does_not_answer_stops_no_restart(head: Head) -> None:
    head.is_away = True
    assert str(RunFailurePolicy(1, "run.1").make_decision(DIED).value) == "RETRY"
    assert restart_reason("run.1") == {}
    forget_restart_reason("run.1")
    head.is_away = False
    head[b"stoker/failure/run.1"] = b"{"
    assert restart_reason("run.1") == {}
