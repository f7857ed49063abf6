"""A progress bar on a terminal, drawn from the progress lines of a run.

The lines come from rank 0 through Ray to the driver's output. On a terminal, the driver's streams are replaced: a
progress line moves the bar, which stays below everything else; all other lines are printed above it.
"""

from __future__ import annotations

import re
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from stoker.recipe import Recipe

__all__ = ["progress_bar", "with_terminal_interval"]

_TERMINAL_EVERY_S = 2.0
_CLEAR = "\r\x1b[K"
_CELLS = 24


def with_terminal_interval(recipe: Recipe, stream: TextIO | None = None) -> Recipe:
    """Return ``recipe`` with ``log_every_s`` short enough for a bar, if ``stream`` (default: stdout) is a terminal."""
    if not (stream or sys.stdout).isatty():
        return recipe
    return recipe.model_copy(update={"log_every_s": min(recipe.log_every_s, _TERMINAL_EVERY_S)})


@contextmanager
def progress_bar(name: str) -> Iterator[None]:
    """Show the progress of the run ``name`` as a bar; does nothing if stdout is not a terminal."""
    streams = sys.stdout, sys.stderr
    if not streams[0].isatty():
        yield
        return
    bar = _Bar(name, streams[0])
    sys.stdout = _Above(streams[0], bar)
    if streams[1].isatty():
        sys.stderr = _Above(streams[1], bar)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams
        bar.clear()


class _Bar:
    """The bar, the last line of ``terminal``."""

    def __init__(self, name: str, terminal: TextIO) -> None:
        self._terminal = terminal
        self._line = re.compile(rf"{re.escape(name)}: epoch (\d+)/(\d+) step (\d+)/(\d+) ([^\x1b]*)")
        self._full, self._empty = ("█", "░") if (terminal.encoding or "").lower().startswith("utf") else ("#", "-")
        self._shown = ""
        self._lock = threading.RLock()

    def line(self, text: str, stream: TextIO) -> None:
        """Handle a whole line of output: move the bar, or write ``text`` above it."""
        with self._lock:
            if found := self._line.search(text):
                epoch, epochs, step, steps = (int(part) for part in found.groups()[:4])
                done = (epoch - 1 + step / steps) / epochs
                cells = round(done * _CELLS)
                drawn = self._full * cells + self._empty * (_CELLS - cells)
                self._shown = f"{drawn} {done:4.0%} epoch {epoch}/{epochs} {found[5].strip()}"
            else:
                self.clear()
                stream.write(text)
                stream.flush()
            if self._shown:
                self._terminal.write(_CLEAR + self._shown[: shutil.get_terminal_size().columns - 1])
                self._terminal.flush()

    def clear(self) -> None:
        """Erase the bar until the next line."""
        with self._lock:
            if self._shown:
                self._terminal.write(_CLEAR)
                self._terminal.flush()


class _Above:
    """A stream whose lines are printed above the bar."""

    def __init__(self, stream: TextIO, bar: _Bar) -> None:
        self._stream, self._bar, self._rest = stream, bar, ""
        self._lock = threading.Lock()

    def write(self, text: str) -> int:
        with self._lock:
            *lines, self._rest = (self._rest + text).split("\n")
            for line in lines:
                self._bar.line(line + "\n", self._stream)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
