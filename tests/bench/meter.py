"""CPU time of a process tree and peak memory of a process, as the kernel counts them."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import psutil

__all__ = ["Meter", "memory_bytes", "peak_memory_bytes", "restart_peak_memory"]

_SAMPLE_EVERY_S = 0.5
_STATUS = Path("/proc/self/status")


class Meter:
    """Measure wall time and CPU time of this process tree, in seconds since the start.

    Processes that end are counted through their parent, which the kernel credits when it waits for them. Not every
    parent waits (Ray's raylet does not): with ``samples`` each process is sampled twice a second and its last sample
    is kept, and the larger of the two sums counts; both are lower bounds.
    """

    def __init__(self, *, samples: bool = False) -> None:
        self._seen: dict[tuple[int, float], float] = {}
        self._is_stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="bench-meter", daemon=True) if samples else None
        self._base = _by_process()
        self._base_sum = _tree_cpu_s()
        if self._thread is not None:
            self._thread.start()
        self._began = time.perf_counter()

    @property
    def wall_s(self) -> float:
        return time.perf_counter() - self._began

    def stop(self) -> tuple[float, float]:
        """Return (wall seconds, CPU seconds) since the start."""
        wall_s, cpu_s = self.wall_s, _tree_cpu_s() - self._base_sum
        if self._thread is not None:
            self._is_stopped.set()
            self._thread.join()
            self._seen |= _by_process()
            cpu_s = max(cpu_s, sum(used - self._base.get(process, 0.0) for process, used in self._seen.items()))
        return wall_s, cpu_s

    def _watch(self) -> None:
        while not self._is_stopped.wait(_SAMPLE_EVERY_S):
            self._seen |= _by_process()


def _tree() -> list[psutil.Process]:
    me = psutil.Process()
    return [me, *me.children(recursive=True)]


def _tree_cpu_s() -> float:
    total = 0.0
    for process in _tree():
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def _by_process() -> dict[tuple[int, float], float]:
    found = {}
    for process in _tree():
        try:
            times = process.cpu_times()
            found[process.pid, process.create_time()] = times.user + times.system
        except psutil.Error:
            continue
    return found


def memory_bytes() -> int:
    """Return the resident memory of this process (VmRSS)."""
    return _status("VmRSS")


def peak_memory_bytes() -> int:
    """Return the peak resident memory since the start or :func:`restart_peak_memory` (VmHWM)."""
    return _status("VmHWM")


def restart_peak_memory() -> None:
    """Reset the peak (proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


def _status(name: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(f"{_STATUS} has no {name}")
