"""The number of concurrent requests, on a simulated store and clock."""

from __future__ import annotations

import heapq
import threading
from contextlib import AbstractContextManager

import pytest

from stoker.storage import InFlight
from stoker.storage.retry import StoreAnswer


class SimulatedStore:
    """Answers ``servers`` requests at a time, each after ``service_s`` seconds; the others wait."""

    def __init__(self, servers: int, service_s: float = 0.05) -> None:
        self.servers, self.service_s, self.now = servers, service_s, 0.0
        self._under_way: list[tuple[float, int, AbstractContextManager[None]]] = []
        self._free = [0.0] * servers

    def clock(self) -> float:
        return self.now

    def read(self, in_flight: InFlight, requests: int, most_wanted: int = 1000) -> None:
        """A reader that sends as many as it may, up to ``most_wanted`` at once."""
        for number in range(requests):
            while len(self._under_way) >= min(in_flight.limit, most_wanted):
                self._finish()
            slot = in_flight.slot()
            slot.__enter__()
            begins = max(self.now, heapq.heappop(self._free))
            heapq.heappush(self._free, begins + self.service_s)
            heapq.heappush(self._under_way, (begins + self.service_s, number, slot))
        while self._under_way:
            self._finish()

    def _finish(self) -> None:
        self.now, _, slot = heapq.heappop(self._under_way)
        slot.__exit__(None, None, None)

    def with_servers(self, servers: int) -> None:
        self._free = [self.now] * servers


@pytest.mark.parametrize("servers", [8, 16, 40])
def test_it_grows_to_what_the_store_answers_at_once_and_little_more(servers: int) -> None:
    store = SimulatedStore(servers)
    in_flight = InFlight(least=2, most=200, start=4, clock=store.clock)
    store.read(in_flight, 5000)
    assert servers <= in_flight.limit <= servers + 16


def test_it_shrinks_when_the_store_can_do_less() -> None:
    store = SimulatedStore(40)
    in_flight = InFlight(least=2, most=200, start=4, clock=store.clock)
    store.read(in_flight, 5000)
    store.with_servers(6)
    store.read(in_flight, 5000)
    assert in_flight.limit <= 22


def test_it_stays_within_its_bounds() -> None:
    store = SimulatedStore(1000)
    in_flight = InFlight(least=2, most=16, start=4, clock=store.clock)
    store.read(in_flight, 3000)
    assert in_flight.limit == 16


def test_a_reader_that_wants_little_does_not_make_it_grow() -> None:
    store = SimulatedStore(100)
    in_flight = InFlight(least=2, most=64, start=8, clock=store.clock)
    store.read(in_flight, 3000, most_wanted=3)
    assert in_flight.limit == 8


def fail(in_flight: InFlight, error: Exception) -> None:
    with pytest.raises(type(error)), in_flight.slot():
        raise error


def test_a_refusal_for_load_shrinks_it_by_a_share_and_never_below_the_least() -> None:
    in_flight = InFlight(least=3, most=64, start=20)
    fail(in_flight, StoreAnswer("slow down", 503, "SlowDown"))
    assert in_flight.limit == 14
    for _ in range(20):
        fail(in_flight, TimeoutError("no answer"))
    assert in_flight.limit == 3


def test_refusals_of_requests_sent_before_a_cut_count_once() -> None:
    now = 0.0
    in_flight = InFlight(least=1, most=64, start=20, clock=lambda: now)
    slots = [in_flight.slot() for _ in range(10)]
    for slot in slots:
        slot.__enter__()
    now = 1.0
    for slot in slots:
        error = StoreAnswer("slow down", 503, "SlowDown")
        with pytest.raises(StoreAnswer):
            raise_through(slot, error)
    assert in_flight.limit == 14


def raise_through(slot: AbstractContextManager[None], error: Exception) -> None:
    if not slot.__exit__(type(error), error, None):
        raise error


def test_what_says_nothing_about_load_changes_nothing() -> None:
    in_flight = InFlight(start=8)
    fail(in_flight, FileNotFoundError("absent"))
    fail(in_flight, PermissionError("refused"))
    assert in_flight.limit == 8


def test_no_more_than_the_limit_are_under_way() -> None:
    in_flight = InFlight(least=2, most=2, start=2)
    inside, most, lock, go = 0, 0, threading.Lock(), threading.Barrier(6)

    def use() -> None:
        nonlocal inside, most
        go.wait()
        for _ in range(50):
            with in_flight.slot():
                with lock:
                    inside += 1
                    most = max(most, inside)
                with lock:
                    inside -= 1

    threads = [threading.Thread(target=use) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most <= 2


@pytest.mark.parametrize("bounds", [(0, 4, 1), (5, 4, 5), (3, 8, 2)])
def test_impossible_bounds_are_refused(bounds: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="give 1 <= least <= start <= most"):
        InFlight(*bounds)
