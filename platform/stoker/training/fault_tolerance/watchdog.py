"""A rank that stands still: the stacks of all its threads go to the log, then its process ends and Ray starts anew.

A rank that hangs makes every other one wait for it in the next collective, so the time-out passes on all ranks within
moments, each writes its stacks, and the log shows who waits and who is waited for. Two clocks: a thread of Python, and
beside it one of ``faulthandler`` in C, for a hang that holds the interpreter's lock.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from typing import TextIO

__all__ = ["Watchdog"]

_GRACE_S = 3.0  # between stacks and end, so that the other ranks, which fail when this one ends, have written theirs
_MARGIN_S = 15.0
_LOOK_EVERY_S = 1.0


class Watchdog:
    """Ends this process ``timeout_s`` seconds after the last :meth:`beat`, unless it was closed."""

    def __init__(self, rank: int, timeout_s: float) -> None:
        self._rank, self._timeout_s = rank, timeout_s
        self._last = time.monotonic()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="stoker-watchdog", daemon=True)
        self._thread.start()

    def beat(self) -> None:
        """The rank goes on. Costs nothing; call it wherever work gets done."""
        self._last = time.monotonic()

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        try:
            while not self._closed.wait(min(_LOOK_EVERY_S, self._timeout_s / 4)):
                faulthandler.dump_traceback_later(self._timeout_s + _MARGIN_S, exit=True, file=_log())
                if time.monotonic() - self._last > self._timeout_s:
                    self._give_up()
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _give_up(self) -> None:
        error = _log()
        error.write(
            f"rank {self._rank} made no progress for {self._timeout_s:g} s (workers.stall_timeout_s); dumping the "
            "stacks of its threads, then it exits and the workers are restarted:\n"
        )
        faulthandler.dump_traceback(file=error, all_threads=True)
        error.flush()
        time.sleep(_GRACE_S)
        os._exit(1)


def _log() -> TextIO:
    """What Ray collects, even where something replaced ``sys.stderr``."""
    return sys.__stderr__ or sys.stderr
