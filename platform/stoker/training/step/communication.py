"""How long the host waits for the other ranks in a step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["CommunicationTimer"]


class CommunicationTimer:
    """Measure how long the host waits for the other ranks in backward passes, in seconds.

    The all-reduce of a bucket overlaps the rest of the backward pass. The delay is the time from the start of the last
    bucket's all-reduce, when this rank's gradients are complete, to the end of the pass, which waits for all of them.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._last_start: float | None = None
        self.seconds = 0.0

    def start(self) -> None:
        """Mark the start of an all-reduce; for the communication hook."""
        self._last_start = self._now()

    @contextmanager
    def measure(self) -> Iterator[None]:
        """Time a backward pass, or any call in which the host only waits."""
        self._last_start = None
        yield
        if self._last_start is not None:
            self.seconds += self._now() - self._last_start

    def pop_seconds(self) -> float:
        """Return the seconds measured since the last call, and reset them."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds
