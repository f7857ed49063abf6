"""How long a rank waits for the other ranks in a step: the host on a CPU, the device on a GPU."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch

__all__ = ["CommunicationTimer", "Mark"]


class Mark(Protocol):
    """A moment on a device's stream, by the interface of ``torch.cuda.Event``."""

    def record(self) -> None: ...

    def query(self) -> bool: ...

    def elapsed_time(self, end_event: Any, /) -> float: ...


class CommunicationTimer:
    """Measure how long a rank waits for the other ranks in backward passes, in seconds.

    The all-reduce of a bucket overlaps the rest of the backward pass. The delay is the time from the start of the last
    bucket's all-reduce, when this rank's gradients are complete, to the end of the pass, which waits for all of them.

    On a CPU the host waits there. On a GPU (``make_mark`` is given) it runs ahead and only the device waits, so both
    moments are marked on the stream that computes, and read when the device has passed them: the host never waits for
    a measurement, and a step's seconds may be those of a step or two before.
    """

    def __init__(
        self, now: Callable[[], float] = time.monotonic, *, make_mark: Callable[[], Mark] | None = None
    ) -> None:
        self._now, self._make_mark = now, make_mark
        self._last_start: float | None = None
        self._start_mark: Mark | None = None
        self._passing: deque[tuple[Mark, Mark]] = deque()
        self._spare: list[Mark] = []
        self.seconds = 0.0

    @classmethod
    def on(cls, device: torch.device) -> CommunicationTimer:
        """The timer for steps on ``device``."""
        if device.type != "cuda":
            return cls()
        return cls(make_mark=lambda: torch.cuda.Event(enable_timing=True))  # type: ignore[no-untyped-call]

    def start(self) -> None:
        """Mark the start of an all-reduce; for the communication hook."""
        if self._make_mark is None:
            self._last_start = self._now()
            return
        if self._start_mark is None:
            self._start_mark = self._mark()
        self._start_mark.record()

    @contextmanager
    def measure(self) -> Iterator[None]:
        """Time a backward pass, or any call in which this rank only waits."""
        self._last_start = self._start_mark = None
        yield
        if self._last_start is not None:
            self.seconds += self._now() - self._last_start
        if self._start_mark is not None:
            end = self._mark()
            end.record()
            self._passing.append((self._start_mark, end))
            self._start_mark = None

    def pop_seconds(self) -> float:
        """Return the seconds measured since the last call, and reset them."""
        while self._passing and self._passing[0][1].query():
            start, end = self._passing.popleft()
            self.seconds += start.elapsed_time(end) / 1e3
            self._spare += [start, end]
        seconds, self.seconds = self.seconds, 0.0
        return seconds

    def _mark(self) -> Mark:
        assert self._make_mark is not None
        return self._spare.pop() if self._spare else self._make_mark()
