"""The end of a stalled rank: what it writes, where, when it exits; and that a closed watchdog leaves nothing behind.

Ranks are forked from the process of pytest, not started anew: a mutant is in that process's memory.
"""

from __future__ import annotations

import ctypes
import faulthandler
import io
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from stoker.training.fault_tolerance import watchdog
from stoker.training.fault_tolerance.watchdog import Watchdog

STALLED = (
    "rank 3 made no progress for 0.5 s (workers.stall_timeout_s); dumping the stacks of its threads, then it exits and "
    "the workers are restarted:"
)


def ended(rank: Callable[[], None], log: Path) -> tuple[int | None, str]:
    """The exit status of ``rank`` in a process of its own, 7 if it returned, and its standard error."""

    def run() -> None:
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), 2)
        rank()
        os._exit(7)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join(60)
    process.kill()
    process.join()
    return process.exitcode, log.read_text()


def waits_for_the_others() -> None:
    threading.Event().wait()


def test_a_stalled_rank_dumps_all_stacks_then_gives_the_others_time_for_theirs_then_exits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rank() -> None:
        monkeypatch.setattr(time, "sleep", lambda seconds: os.write(2, f"sleeps {seconds:g} s\n".encode()))
        Watchdog(3, 0.5)
        waits_for_the_others()

    status, text = ended(rank, tmp_path / "log")
    first, *stacks, last = text.splitlines()
    assert status == 1
    assert first == STALLED
    assert any("in waits_for_the_others" in line for line in stacks)
    assert any("in _abort" in line for line in stacks)
    assert last == f"sleeps {watchdog._GRACE_S:g} s"


def test_all_ranks_look_and_dump_before_the_first_of_them_exits() -> None:
    assert 2 * watchdog._POLL_INTERVAL_S < watchdog._GRACE_S
    assert watchdog._POLL_INTERVAL_S + watchdog._GRACE_S < watchdog._MARGIN_S, "the timer in C is the last resort"


def test_a_stall_is_told_where_ray_collects_it_though_the_stream_was_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rank() -> None:
        sys.stderr = io.StringIO()
        Watchdog(3, 0.5)
        waits_for_the_others()

    monkeypatch.setattr(watchdog, "_GRACE_S", 0.0)
    status, text = ended(rank, tmp_path / "log")
    assert status == 1
    assert text.startswith(f"{STALLED}\n")


def test_a_stall_is_told_line_first_where_the_only_stream_is_one_that_buffers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rank() -> None:
        sys.__stderr__, sys.stderr = None, (tmp_path / "own").open("w")  # type: ignore[misc]
        Watchdog(3, 0.5)
        waits_for_the_others()

    monkeypatch.setattr(watchdog, "_GRACE_S", 0.0)
    assert ended(rank, tmp_path / "log")[0] == 1
    assert (tmp_path / "own").read_text().startswith(f"{STALLED}\n")


def holds_the_interpreters_lock() -> None:
    ctypes.PyDLL(None).sleep(20)


def test_a_stall_that_holds_the_interpreters_lock_ends_the_rank_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can run Python then. The timeouts are such that only their sum, 2 s, is ever reached."""
    armed, arm = threading.Event(), faulthandler.dump_traceback_later

    def noting(*given: float, **how: object) -> None:
        arm(*given, **how)  # type: ignore[arg-type]
        armed.set()

    def rank() -> None:
        Watchdog(3, 500.0)
        armed.wait(30)
        holds_the_interpreters_lock()

    monkeypatch.setattr(watchdog, "_MARGIN_S", -498.0)
    monkeypatch.setattr(faulthandler, "dump_traceback_later", noting)
    status, text = ended(rank, tmp_path / "log")
    assert status == 1
    assert text.startswith("Timeout (0:00:02)!\n")
    assert "in holds_the_interpreters_lock" in text


def test_a_closed_watchdog_has_ended_and_left_no_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    cancel = faulthandler.cancel_dump_traceback_later

    def noting() -> None:
        time.sleep(0.2)  # so that it matters whether it is waited for
        cancel()
        told.append("cancelled")

    monkeypatch.setattr(faulthandler, "cancel_dump_traceback_later", noting)
    watched = Watchdog(0, 500.0)
    assert "stoker-watchdog" in {thread.name for thread in threading.enumerate()}
    watched.close()
    assert told == ["cancelled"]
    assert "stoker-watchdog" not in {thread.name for thread in threading.enumerate()}
