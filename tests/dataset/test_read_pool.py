"""The pool of reads: the most urgent first, and at most one other during the first step."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError

import pytest

from stoker.dataset.read_pool import ReadPool


class Reads:
    """Reads that each wait to be let go; ``begun`` are those that have begun, in order."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self._gates: dict[str, threading.Event] = {}

    def of(self, name: str) -> Callable[[], str]:
        gate = self._gates[name] = threading.Event()

        def read() -> str:
            self.begun.append(name)
            gate.wait(120)
            return name

        return read

    def let_go(self, name: str) -> None:
        self._gates[name].set()

    def wait_for(self, *names: str) -> None:
        deadline = time.monotonic() + 20
        while set(names) - set(self.begun):
            assert time.monotonic() < deadline, f"begun are {self.begun}"
            time.sleep(0.002)


def test_until_it_is_opened_one_read_goes_beside_those_of_the_first_step() -> None:
    pool: ReadPool[str] = ReadPool(8, first=3)
    reads = Reads()
    later = [pool.submit(4 + i, reads.of(f"later {i}")) for i in range(4)]
    first = [pool.submit(3, reads.of(f"first {i}")) for i in range(4)]
    assert reads.begun == [], "nothing is read before all is asked for"
    pool.begin()
    reads.wait_for("first 0", "first 1", "first 2", "first 3", "later 0")
    assert len(reads.begun) == 5
    reads.let_go("later 0")
    assert later[0].result(30) == "later 0"
    reads.wait_for("later 1")
    assert len(reads.begun) == 6
    pool.open()
    reads.wait_for("later 2", "later 3")
    for i in range(4):
        reads.let_go(f"first {i}")
        assert first[i].result(30) == f"first {i}"
    pool.close()
    for i in range(1, 4):
        reads.let_go(f"later {i}")


def test_closing_completes_every_future_whether_its_read_was_begun_or_not() -> None:
    pool: ReadPool[str] = ReadPool(1, first=0)
    reads = Reads()
    under_way, waiting = pool.submit(0, reads.of("one")), pool.submit(0, reads.of("two"))
    pool.begin()
    reads.wait_for("one")
    pool.close()
    assert waiting.cancelled()
    with pytest.raises(CancelledError):  # without waiting for the read, which may hang
        under_way.result(30)
    reads.let_go("one")


def test_a_read_submitted_after_closing_is_cancelled_and_never_run() -> None:
    pool: ReadPool[str] = ReadPool(1, first=0)
    reads = Reads()
    pool.begin()
    pool.close()
    pool.begin()
    with pytest.raises(CancelledError):
        pool.submit(0, reads.of("late")).result(30)
    assert reads.begun == []


def test_an_error_is_the_futures() -> None:
    pool: ReadPool[str] = ReadPool(1, first=0)

    def fail() -> str:
        raise KeyError("gone")

    future = pool.submit(0, fail)
    pool.begin()
    with pytest.raises(KeyError, match="gone"):
        future.result(30)
    pool.close()


def test_two_reads_submitted_at_once_do_not_wait_for_the_same_idle_thread() -> None:
    pool: ReadPool[str] = ReadPool(8, first=0)
    reads = Reads()
    pool.submit(0, lambda: "a thread")
    pool.begin()
    pool.open()
    deadline = time.monotonic() + 20
    while not pool._idle:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    one, two = reads.of("one"), reads.of("two")
    with pool._change:  # the idle thread cannot take the first before the second is there
        pool.submit(0, one)
        pool.submit(0, two)
    reads.wait_for("one", "two")
    reads.let_go("one")
    reads.let_go("two")
    pool.close()
