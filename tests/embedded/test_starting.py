"""When a start counts as ready, when it is tried again, and what a failed one leaves."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from stoker.embedded import Instance, Settings, StateFolder
from stoker.embedded.cluster import RayCluster
from stoker.embedded.ports import preferred_port
from stoker.embedded.processes import ExitedByItself, Started, wait_until
from stoker.errors import ClusterError


def test_ready_must_hold(tmp_path: Path) -> None:
    answers = iter([True, True, False, *[True] * 100])
    began = time.monotonic()
    wait_until(lambda: next(answers), "it", timeout_s=30, hold_s=0.5, log=tmp_path / "log")
    assert 0.75 < time.monotonic() - began < 5  # a hold of 0.5 s, begun anew after 0.3 s
    began = time.monotonic()
    wait_until(lambda: True, "it", timeout_s=30, log=tmp_path / "log")
    assert time.monotonic() - began < 0.1


def test_a_program_that_exits_while_its_readiness_is_held_is_not_ready(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("Remaining processes will be killed.\n")
    with pytest.raises(ExitedByItself, match=r"it exited by itself after 0 s: Remaining processes will be killed\. \("):
        wait_until(lambda: True, "it", timeout_s=30, hold_s=0.5, process=Started(2**22 + 1, 0.0), log=tmp_path / "log")


def test_what_is_never_ready_times_out(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"it is not ready after 0\.2 s"):
        wait_until(lambda: False, "it", timeout_s=0.2, hold_s=0.5, log=tmp_path / "log")


class Failing(RayCluster):
    """A cluster whose starts fail with ``errors``, one after another, and then succeed."""

    errors: list[ClusterError]
    starts = 0

    def _start_once(self, environment: Mapping[str, str]) -> None:
        self.starts += 1
        if self.errors:
            raise self.errors.pop(0)


@pytest.mark.parametrize(
    ("errors", "starts", "fails"),
    [
        ([], 1, False),
        ([ExitedByItself("it")], 2, False),
        ([ExitedByItself("it"), ExitedByItself("it")], 2, True),
        ([ClusterError("not ready")], 1, True),
    ],
)
def test_a_start_that_exited_by_itself_is_tried_once_more(
    tmp_path: Path, errors: list[ClusterError], starts: int, fails: bool
) -> None:
    cluster = Failing(StateFolder(tmp_path / "state"))
    cluster.errors = errors
    try:
        cluster.start({})
        assert not fails
    except ClusterError:
        assert fails
    assert cluster.starts == starts


def test_the_client_server_need_not_wait_for_the_raylet(tmp_path: Path) -> None:
    ports = {"gcs": 1, "dashboard": 2, "client": 3, "runtime-env-agent": 4}
    assert "--runtime-env-agent-port=4" in RayCluster(StateFolder(tmp_path))._arguments(ports)


@pytest.mark.parametrize("port", ["x", "-1", "65536", "1.5", "²"])
def test_a_bad_port_is_refused_before_anything_is_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, port: str
) -> None:
    for name in ("S3", "GCS", "DASHBOARD", "SERVE"):
        with monkeypatch.context() as patch:
            patch.setenv(f"STOKER_PORT_{name}", port)
            with pytest.raises(ClusterError, match=f"^STOKER_PORT_{name}='{port}' is not a port"):
                Instance(tmp_path / "state", Settings.model_validate({})).start("up")
    assert not (tmp_path / "state").exists()
    monkeypatch.setenv("STOKER_PORT_S3", "65535")
    assert preferred_port("s3", 8333) == 65535
    assert preferred_port("gcs", 6379) == 6379


def test_a_store_that_cannot_start_leaves_no_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    instance = Instance(tmp_path / "state", Settings.model_validate({}))

    def fail() -> None:
        raise ClusterError("the program weed is not installed")

    monkeypatch.setattr(instance.store, "start", fail)
    with pytest.raises(ClusterError, match="weed"):
        instance.start("up")
    assert instance.owner is None
    assert not (tmp_path / "state" / "state.json").exists()


def test_files_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "local.yaml").write_bytes(b"cpus: 4 # \xff")
    with pytest.raises(ClusterError, match=r"cannot read the settings .*local\.yaml \(not UTF-8\)"):
        Settings.read(tmp_path / "local.yaml")
    (tmp_path / "ray-token").write_bytes(b"\xff")
    with pytest.raises(ClusterError, match=r"cannot read or write .*ray-token \(not UTF-8\)"):
        StateFolder(tmp_path).ray_token()
