"""Bytes through stoker's stream: read from the store and checked, not decoded."""

from __future__ import annotations

from bench.data.ours import read_raw
from bench.data.place import Place
from bench.meter import Meter

__all__ = ["measure"]


def measure(place: Place) -> dict[str, float]:
    """MB (10^6 bytes) by the clock and by CPU time: from the first step on, as the raw clients are made before they
    are measured, and with the start (manifest, indexes, threads and connections)."""
    meter = Meter()
    steps = read_raw(place)
    at_first = next(steps)
    streaming = Meter()
    read = at_first
    for so_far in steps:
        read = so_far
    wall_s, cpu_s = streaming.stop()
    with_start_s, _ = meter.stop()
    return {
        "mb_per_s": (read - at_first) / 1e6 / wall_s,
        "mb_per_cpu_s": (read - at_first) / 1e6 / cpu_s,
        "mb_per_s_with_start": read / 1e6 / with_start_s,
    }
