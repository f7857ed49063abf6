"""The lease at its edges: what changes while it is watched, who is gone, when it is renewed, and what it says."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from stoker.errors import RunError, StorageError
from stoker.storage import Conflict, Location, locate
from stoker.training.fault_tolerance import lease as module
from stoker.training.fault_tolerance.lease import PERIOD_S, Holder, Lease, read_holder

AN_HOUR_S = 3600.0


@pytest.fixture
def place(tmp_path: Path) -> Location:
    return locate(tmp_path / "runs" / "mine" / "lease.json", timeout_s=1)


def elsewhere(**changes: object) -> Holder:
    """A holder on a machine that this one cannot see."""
    there = {"machine": "another", "host": "elsewhere", "pid": 4711, "job": "raysubmit_1"}
    return replace(Holder.this_process(), **(there | changes))  # type: ignore[arg-type]


@pytest.fixture
def while_watched(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], list[float]]:
    """``while_watched(change)``: what happens while a lease is watched, once, in place of the first pause."""
    pauses: list[float] = []

    def at_first_pause(change: Callable[[], object]) -> list[float]:
        def pause(seconds: float) -> None:
            pauses.append(seconds)
            if len(pauses) == 1:
                change()

        monkeypatch.setattr(module, "time", SimpleNamespace(sleep=pause, monotonic=time.monotonic))
        return pauses

    return at_first_pause


# -- while it is watched -----------------------------------------------------------------------------------------------


def test_a_lease_that_is_released_while_it_is_watched_is_taken(
    place: Location, while_watched: Callable[[Callable[[], object]], list[float]]
) -> None:
    place.write(elsewhere().encoded())
    pauses = while_watched(lambda: place.write(elsewhere(released=True).encoded()))
    with Lease(place, period_s=AN_HOUR_S) as mine:
        assert read_holder(place).token == mine.token  # type: ignore[union-attr]
    assert len(pauses) == 1


def test_a_lease_that_is_deleted_while_it_is_watched_is_taken(
    place: Location, while_watched: Callable[[Callable[[], object]], list[float]]
) -> None:
    place.write(elsewhere().encoded())
    while_watched(place.delete)
    with Lease(place, period_s=AN_HOUR_S) as mine:
        assert read_holder(place).token == mine.token  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("content", "who"),
    [
        (elsewhere(beat=1).encoded(), "process 4711 on elsewhere, job raysubmit_1 renewed"),
        (b"{}", "an unknown process"),
    ],
)
def test_a_lease_that_changes_while_it_is_watched_is_refused_at_once(
    place: Location, while_watched: Callable[[Callable[[], object]], list[float]], content: bytes, who: str
) -> None:
    place.write(elsewhere().encoded())
    pauses = while_watched(lambda: place.write(content))
    with pytest.raises(RunError, match=f"'mine' already has a driver: {who}"):
        Lease(place, period_s=AN_HOUR_S).__enter__()
    assert len(pauses) == 1
    assert place.read() == content


def test_a_lease_is_watched_for_its_period_twice_a_second(place: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    place.write(b"no lease")
    clock = iter([0.0, 0.0, 9.9, 10.0])
    pauses: list[float] = []
    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=pauses.append, monotonic=lambda: next(clock)))
    found = place.version()
    assert found is not None
    assert Lease(place)._free_version(found) == found[1]
    assert pauses == [0.5, 0.5]


# -- who is gone -------------------------------------------------------------------------------------------------------


def test_a_process_that_runs_is_not_gone_and_one_that_ended_or_only_has_its_number_is() -> None:
    mine = Holder.this_process()
    assert mine.is_gone() is False
    assert replace(mine, started=mine.started - 2).is_gone() is False  # clocks are read to the second
    assert replace(mine, started=mine.started - 2.5).is_gone() is True
    assert replace(mine, started=mine.started + 2.5).is_gone() is True
    assert replace(mine, machine="another").is_gone() is None


def test_a_process_that_nobody_waited_for_is_gone() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        started = psutil.Process(child.pid).create_time()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it stays as a zombie
        assert replace(Holder.this_process(), pid=child.pid, started=started).is_gone() is True


def test_a_holder_says_who_this_process_is(monkeypatch: pytest.MonkeyPatch) -> None:
    configured = {"metadata": {"job_submission_id": "raysubmit_7"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(configured))
    one, two = Holder.this_process(), Holder.this_process()
    assert (one.pid, one.host, one.job) == (os.getpid(), socket.gethostname(), "raysubmit_7")
    assert one.started == psutil.Process().create_time()
    assert (one.beat, one.stops, one.released) == (0, False, False)
    assert re.fullmatch("[0-9a-f]{16}", one.token)
    assert one.token != two.token
    assert one.machine == two.machine
    assert re.fullmatch(r"[0-9a-f-]{36} pid:\[\d+\]", one.machine)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", one.renewed)


@pytest.mark.parametrize("configured", [None, "", "{}", "no json", '{"metadata": {}}', "[]", '{"metadata": 3}'])
def test_outside_of_a_job_there_is_no_job(monkeypatch: pytest.MonkeyPatch, configured: str | None) -> None:
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    if configured is not None:
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", configured)
    assert Holder.this_process().job == ""


def test_a_machine_without_proc_is_known_by_its_name_and_when_it_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", refuse)
    assert Holder.this_process().machine == f"{socket.gethostname()} {psutil.boot_time():.0f}"


# -- renewals ----------------------------------------------------------------------------------------------------------


class _Waits(threading.Event):
    """Ends the third wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.timeouts: list[float | None] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.timeouts.append(timeout)
        return len(self.timeouts) > 2


def test_a_lease_is_renewed_four_times_in_its_period_and_counts_on(place: Location) -> None:
    mine = Lease(place, period_s=8.0)
    mine._ended = waits = _Waits()
    with mine:
        mine._renewer.join()
        assert waits.timeouts == [2.0] * 3
        assert read_holder(place).beat == 2  # type: ignore[union-attr]


def test_a_lease_that_is_given_back_says_so_and_is_renewed_no_more(place: Location) -> None:
    mine = Lease(place, period_s=AN_HOUR_S)
    with mine:
        assert not read_holder(place).released  # type: ignore[union-attr]
    assert read_holder(place).released  # type: ignore[union-attr]
    assert not mine._renewer.is_alive()


def test_a_renewal_that_arrived_though_its_answer_was_lost_keeps_the_lease(
    place: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    swap = Location.swap

    def lose_the_answer(where: Location, data: bytes, expected: str | None) -> None:
        monkeypatch.setattr(Location, "swap", swap)
        swap(where, data, expected)
        raise Conflict("it is not what it was", url=where.url)

    with Lease(place, period_s=AN_HOUR_S) as mine:
        monkeypatch.setattr(Location, "swap", lose_the_answer)
        mine._renew()
        mine._renew()
        assert not mine.lost.is_set()
    assert read_holder(place).released  # type: ignore[union-attr]


@pytest.mark.parametrize("content", [b"no lease", elsewhere().encoded(), None])
def test_a_lease_that_became_anothers_is_lost_and_left_as_it_is(place: Location, content: bytes | None) -> None:
    with Lease(place, period_s=AN_HOUR_S) as mine:
        place.delete() if content is None else place.write(content)
        mine._renew()
        assert mine.lost.is_set()
    assert (place.read() if place.exists() else None) == content


def test_a_store_that_is_away_for_a_while_is_asked_again(place: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, asked = Lease(place, period_s=8.0), []
    mine._ended = _Waits()

    def away() -> None:
        asked.append(1)
        raise StorageError("it does not answer", url=place.url)

    monkeypatch.setattr(mine, "_renew", away)
    with mine:
        mine._renewer.join()
    assert len(asked) == 2
    assert not mine.lost.is_set()


def test_a_store_that_is_away_at_the_end_leaves_the_lease_to_expire(
    place: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise StorageError("it does not answer", url=place.url)

    with Lease(place, period_s=AN_HOUR_S):
        monkeypatch.setattr(Location, "swap", away)
    assert not read_holder(place).released  # type: ignore[union-attr]


# -- what it says ------------------------------------------------------------------------------------------------------


def test_nobody_holds_what_is_not_there_or_is_no_lease(place: Location) -> None:
    assert read_holder(place) is None
    for content in (b"no json", b"[]", b"{}", json.dumps({**asdict(elsewhere()), "more": 1}).encode()):
        place.write(content)
        assert read_holder(place) is None
    place.write(elsewhere(beat=3).encoded())
    assert read_holder(place) == elsewhere(beat=3, token=read_holder(place).token, renewed=read_holder(place).renewed)  # type: ignore[union-attr]


def test_a_refusal_names_the_run_and_a_holder_outside_of_a_job(place: Location) -> None:
    place.write(replace(Holder.this_process(), job="", renewed="2001-01-01T00:00:00+00:00").encoded())
    host = re.escape(socket.gethostname())
    line = rf"run 'mine' already has a driver: process {os.getpid()} on {host} renewed its lease at 2001-01-01T00:00:00"
    with pytest.raises(RunError, match=line):
        Lease(place).__enter__()


def test_the_docs_say_how_long_a_lease_lasts() -> None:
    page = Path(__file__).parents[3] / "docs/explanation/fault-tolerance.md"
    assert f"expires when it has not changed for {PERIOD_S:g} s" in page.read_text()
    assert f"is renewed every {PERIOD_S / 4:g} s" in page.read_text()
