"""Hedge the slowest requests: send a second one, and take the first valid response.

Hedged requests after Dean and Barroso, *The Tail at Scale*, CACM 56(2), 2013: the second is sent when the first has
taken longer than a high percentile of the recent ones of about its size. A budget bounds them to twice the fraction
above the percentile, so that a store that is slow for all requests does not get twice the load.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import TypeVar

__all__ = ["Hedging"]

T = TypeVar("T")

_KEPT = 256  # latencies of each size
_LEAST = 32  # latencies before a percentile is meaningful
_MOST_SAVED = 8.0  # hedges that can accumulate


class Hedging:
    """Decides when to send a second request. Safe to use from many threads."""

    def __init__(self, percentile: float) -> None:
        self._percentile = percentile
        self._lock = threading.Lock()
        self._latencies: dict[int, deque[float]] = {}
        self._budget = 1.0

    def observe(self, bytes_: int, latency_s: float) -> None:
        """Record a valid response of ``bytes_`` bytes after ``latency_s`` seconds."""
        with self._lock:
            self._latencies.setdefault(bytes_.bit_length(), deque(maxlen=_KEPT)).append(latency_s)
            self._budget = min(_MOST_SAVED, self._budget + 2 * (1 - self._percentile / 100))

    def delay_s(self, bytes_: int) -> float | None:
        """Seconds after which a request of ``bytes_`` bytes is among the slowest; None before enough were observed."""
        with self._lock:
            seen = sorted(self._latencies.get(bytes_.bit_length(), ()))
        if len(seen) < _LEAST:
            return None
        return seen[min(len(seen) - 1, int(len(seen) * self._percentile / 100))]

    def spend(self) -> bool:
        """Take one hedge from the budget; False if it is exhausted."""
        with self._lock:
            if self._budget < 1:
                return False
            self._budget -= 1
            return True

    def run(self, request: Callable[[], T], bytes_: int, on_hedge: Callable[[bool], None]) -> T:
        """Run ``request``, and if it is slow a second one concurrently; returns the first result.

        ``request`` may run in two threads at once, and the slower one finishes later by itself, so it needs a timeout.
        ``on_hedge`` is called with False when a second request is sent, and with True when it won.

        Raises:
            Whatever the first request raised, if none succeeded.
        """
        delay_s = self.delay_s(bytes_)
        if delay_s is None:
            return request()
        answers: queue.SimpleQueue[tuple[int, T | None, BaseException | None]] = queue.SimpleQueue()

        def run(number: int) -> None:
            try:
                answers.put((number, request(), None))
            except BaseException as error:
                answers.put((number, None, error))

        _start(run, 0)
        sent, failure = 1, None
        try:
            number, result, error = answers.get(timeout=delay_s)
        except queue.Empty:
            if self.spend():
                _start(run, 1)
                on_hedge(False)
                sent = 2
            number, result, error = answers.get()
        if error is not None and sent == 2:
            failure = error
            number, result, error = answers.get()
        if error is not None:
            raise failure or error
        if number == 1:
            on_hedge(True)
        return result  # type: ignore[return-value]


def _start(run: Callable[[int], None], number: int) -> None:
    # a daemon: a request that lost must not keep the process from exiting
    threading.Thread(target=run, args=(number,), name=f"stoker-hedge-{number}", daemon=True).start()
