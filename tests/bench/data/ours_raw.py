"""Bytes through stoker's stream: read from the store and checked, not decoded."""

from __future__ import annotations

from bench.data.ours import read_raw
from bench.data.place import Place
from bench.meter import Meter

__all__ = ["measure"]


def measure(place: Place) -> dict[str, float]:
    """MB (10^6 bytes) by the clock and by CPU time, from the stream's making on."""
    meter = Meter()
    read = 0
    for so_far in read_raw(place):
        read = so_far
    wall_s, cpu_s = meter.stop()
    return {"mb_per_s": read / 1e6 / wall_s, "mb_per_cpu_s": read / 1e6 / cpu_s}
