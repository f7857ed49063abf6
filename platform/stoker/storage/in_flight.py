"""Adapt the number of concurrent requests: grow while latency stays low, shrink when requests queue.

The scheme is TCP Vegas (Brakmo, O'Malley and Peterson, *TCP Vegas: New Techniques for Congestion Detection and
Avoidance*, SIGCOMM 1994), as Netflix applied it to requests (Netflix/concurrency-limits, ``VegasLimit``): with
``limit`` concurrent requests, a window's mean latency compared with the least seen lately estimates how many of them
only queue,
``limit * (1 - least / mean)``. A request that the store refuses because of its load, or without a response, shrinks the
limit by a factor at once (additive increase, multiplicative decrease: Chiu and Jain, 1989).
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from stoker.storage.retry import failure_kind

__all__ = ["InFlight"]

_SHRINK = 0.7
_FEW, _MANY = 3, 6  # queued requests, times log10(limit): VegasLimit's alpha and beta
_LEAST_WINDOW = 8  # requests
_PROBE_EVERY = 30  # windows: then the least latency is measured again, with half as many requests


class InFlight:
    """A bound on concurrent requests between ``least`` and ``most`` that adapts. Safe to use from many threads.

    Raises:
        ValueError: unless 1 <= least <= start <= most.
    """

    def __init__(
        self, least: int = 2, most: int = 64, start: int = 8, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        start = min(start, most)
        if not 1 <= least <= start <= most:
            raise ValueError(
                f"cannot bound requests by {least} to {most} from {start}; give 1 <= least <= start <= most"
            )
        self._least, self._most, self._clock = least, most, clock
        self._limit = float(start)
        self._change = threading.Condition()
        self._running = 0
        self._base_s = math.inf
        self._windows = 0
        self._probe_windows, self._probed_limit = 0, 0.0
        self._cut_at = -math.inf
        self._begin_window()

    @property
    def limit(self) -> int:
        """The current bound on concurrent requests."""
        return int(self._limit)

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Wait for and hold the place of one request. A timeout, a slow-down or a failed connection that is raised
        inside counts as a sign of overload; every exception is passed on."""
        with self._change:
            while self._running >= self.limit:
                self._change.wait()
            self._running += 1
            was_full = self._running >= self.limit
        began = self._clock()
        failure: BaseException | None = None
        try:
            yield
        except BaseException as error:
            failure = error
            raise
        finally:
            with self._change:
                self._running -= 1
                if failure is None:
                    self._answered(self._clock() - began, was_full)
                elif failure_kind(failure) in {"deadlines", "resets", "slow_downs"}:
                    self._overloaded(began)
                self._change.notify_all()

    def _begin_window(self) -> None:
        self._sum_s, self._answers, self._was_full = 0.0, 0, False

    def _answered(self, latency_s: float, was_full: bool) -> None:
        self._sum_s += latency_s
        self._answers += 1
        self._was_full |= was_full
        if self._answers >= max(_LEAST_WINDOW, self.limit):
            self._end_window(self._sum_s / self._answers)
            self._begin_window()

    def _end_window(self, mean_s: float) -> None:
        if self._probe_windows:
            self._probe_windows -= 1
            if not self._probe_windows:  # the first window only drained earlier requests
                self._base_s, self._limit = mean_s, self._probed_limit
            return
        self._base_s = min(self._base_s, mean_s)
        if not self._was_full:  # limited by the reader, not by the limit: nothing was learnt
            return
        self._windows += 1
        if self._windows % _PROBE_EVERY == 0:
            self._probe_windows, self._probed_limit = 2, self._limit
            self._limit = max(float(self._least), self._limit / 2)
            return
        queued = self._limit * (1 - self._base_s / mean_s) if mean_s > 0 else 0.0
        step = max(1.0, math.log10(self._limit))
        if queued < _FEW * step:
            self._limit = min(float(self._most), self._limit + step)
        elif queued > _MANY * step:
            self._limit = max(float(self._least), self._limit - step)

    def _overloaded(self, began: float) -> None:
        if began < self._cut_at:  # sent before the last cut: the same overload again
            return
        self._limit = max(float(self._least), self._limit * _SHRINK)
        self._probe_windows = 0
        self._cut_at = self._clock()
        self._begin_window()
