"""Abort a rank that makes no progress, after dumping the stacks of all its threads to the log.

A stalled rank makes every other one wait for it in the next collective, so the timeout expires on all ranks within
moments, each dumps its stacks, and the log shows who waits and who is waited for. There are two timers: a Python
thread, and one of ``faulthandler`` in C for a stall that holds the interpreter's lock.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from typing import TextIO

__all__ = ["Watchdog"]

_GRACE_S = 3.0  # between dump and exit, so that the other ranks, which fail when this one exits, have dumped theirs
_MARGIN_S = 15.0
_POLL_INTERVAL_S = 1.0


class Watchdog:
    """Exits this process ``timeout_s`` seconds after the last :meth:`heartbeat`, unless it was closed."""

    def __init__(self, rank: int, timeout_s: float) -> None:
        self._rank, self._timeout_s = rank, timeout_s
        self._last = time.monotonic()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="stoker-watchdog", daemon=True)
        self._thread.start()

    def heartbeat(self) -> None:
        """Report progress. Costs nothing; call it wherever work gets done."""
        self._last = time.monotonic()

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        try:
            while not self._closed.wait(min(_POLL_INTERVAL_S, self._timeout_s / 4)):
                faulthandler.dump_traceback_later(self._timeout_s + _MARGIN_S, exit=True, file=_log())
                if time.monotonic() - self._last > self._timeout_s:
                    self._abort()
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _abort(self) -> None:
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
    """The stream that Ray collects, even where something replaced ``sys.stderr``."""
    return sys.__stderr__ or sys.stderr
