"""Abort a rank that makes no progress, after dumping the stacks of all its threads to the log.

A stalled rank makes every other one wait for it in the next collective, so the timeout expires on all ranks within
moments, each dumps its stacks, and the log shows who waits and who is waited for. There are two timers: a Python
thread, and one of ``faulthandler`` in C for a stall that holds the interpreter's lock.

torch.compile may take longer than the timeout and reports nothing meanwhile. It is known to work, though, by the
processor time that this process and its children (compilers) use: as long as they do, a compilation is no stall.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import TextIO

import psutil

__all__ = ["Progress", "Watchdog", "processor_seconds"]

_GRACE_S = 3.0  # between dump and exit, so that the other ranks, which fail when this one exits, have dumped theirs
_MARGIN_S = 15.0
_POLL_INTERVAL_S = 1.0
_LEAST_LOAD = 0.05
"""of one processor, by which a compilation is known to work; the threads of an idle worker stay far below"""


class Progress:
    """When a rank last made progress. Its methods may be called from any thread."""

    def __init__(
        self,
        timeout_s: float,
        now: Callable[[], float] = time.monotonic,
        processor_s: Callable[[], float] | None = None,
    ) -> None:
        self._timeout_s, self._now, self._processor_s = timeout_s, now, processor_s or processor_seconds
        self._last = now()
        self._lock = threading.Lock()
        self._seen: tuple[float, float | None] | None = None
        """while something is compiled: when, and the processor time by then, as :meth:`is_stalled` measured it"""

    def heartbeat(self) -> None:
        """Progress was made."""
        self._last = self._now()

    def compile_begins(self) -> None:
        """A compilation begins, which is watched by the processor time that it uses."""
        with self._lock:
            self._seen = self._now(), None

    def compile_ends(self) -> None:
        """The compilation has ended, which is progress."""
        with self._lock:
            self._seen = None
            self.heartbeat()

    def is_stalled(self) -> bool:
        """Whether there was no progress for the timeout; call it every second or so."""
        with self._lock:
            if self._seen is not None:
                (before, had_used), now, used = self._seen, self._now(), self._processor_s()
                if had_used is not None and used - had_used > _LEAST_LOAD * (now - before):
                    self._last = now
                self._seen = now, used
        return self._now() - self._last > self._timeout_s


def processor_seconds() -> float:
    """Processor time in seconds that this process, without the calling thread, and all of its descendants have used.

    Descendants that have ended and were waited for count.
    """
    total, own = -time.thread_time(), psutil.Process()  # without the watchdog's own, which looks at every process
    for process in (own, *own.children(recursive=True)):
        with contextlib.suppress(psutil.Error):  # it has ended: its parent has its time
            total += sum(process.cpu_times()[:4])  # user and system, of the process and of its children that have ended
    return total


class Watchdog:
    """Exits this process ``timeout_s`` seconds after the last :meth:`heartbeat`, unless it was closed."""

    def __init__(self, rank: int, timeout_s: float) -> None:
        self._rank, self._timeout_s = rank, timeout_s
        self._progress = Progress(timeout_s)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="stoker-watchdog", daemon=True)
        self._thread.start()

    def heartbeat(self) -> None:
        """Report progress. Costs nothing; call it wherever work gets done."""
        self._progress.heartbeat()

    def compile_begins(self) -> None:
        """Expect no heartbeats, but processor time, until :meth:`compile_ends`."""
        self._progress.compile_begins()

    def compile_ends(self) -> None:
        self._progress.compile_ends()

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        try:
            while not self._closed.wait(_POLL_INTERVAL_S):
                faulthandler.dump_traceback_later(self._timeout_s + _MARGIN_S, exit=True, file=_log())
                if self._progress.is_stalled():
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
        time.sleep(_GRACE_S)
        os._exit(1)


def _log() -> TextIO:
    """The stream that Ray collects, even where something replaced ``sys.stderr``."""
    return sys.__stderr__ or sys.stderr
