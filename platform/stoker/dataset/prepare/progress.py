"""Show the progress of a preparation: a bar on a terminal, a line every ten seconds in a log."""

from __future__ import annotations

import sys
import time
from typing import TextIO

__all__ = ["Progress"]

_LINE_EVERY_S = 10.0
_BAR_EVERY_S = 0.2
_BAR_WIDTH = 30


class Progress:
    """Counts images and source bytes; rate and time left are those of this attempt alone.

    ``images``: their total, None if it is not known.
    """

    def __init__(self, images: int | None, verb: str = "prepared", stream: TextIO | None = None) -> None:
        self._total = images
        self._verb = verb
        self._stream = stream or sys.stderr
        self._is_terminal = self._stream.isatty()
        self._images = self._fresh = self._bytes = 0
        self._began = self._shown = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    @property
    def images_per_s(self) -> float:
        """Images per second that this attempt read."""
        return self._fresh / max(self.seconds, 1e-9)

    def advance(self, images: int, bytes_: int, *, is_fresh: bool) -> None:
        """Count ``images`` more as done; not fresh if an earlier attempt had done them."""
        self._images += images
        self._bytes += bytes_
        self._fresh += images if is_fresh else 0
        now = time.monotonic()
        if now - self._shown >= (_BAR_EVERY_S if self._is_terminal else _LINE_EVERY_S):
            self._shown = now
            self._show()

    def close(self) -> None:
        """Show the final state."""
        self._show()
        if self._is_terminal:
            self._stream.write("\n")
            self._stream.flush()

    def _show(self) -> None:
        total = self._images if self._total is None else self._total
        left, rate = total - self._images, self.images_per_s
        rest = f"{_clock(left / rate)} left" if rate and left else f"{_clock(self.seconds)} taken"
        of = "" if self._total is None else f" of {total:,}"
        line = f"{self._images:,}{of} images, {self._bytes / 1e6:,.1f} MB, {rate:,.0f} images/s, {rest}"
        if self._is_terminal:
            filled = 0 if self._total is None else _BAR_WIDTH * self._images // max(1, total)
            self._stream.write(f"\r[{'#' * filled}{'.' * (_BAR_WIDTH - filled)}] {self._verb} {line}\033[K")
        else:
            self._stream.write(f"{self._verb} {line}\n")
        self._stream.flush()


def _clock(seconds: float) -> str:
    whole = int(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"
