"""The decode primitive alone: bytes in memory, one thread, into its place in a batch."""

from __future__ import annotations

import time

import torch

from bench.data.ours import decode_alone
from bench.data.place import Place

__all__ = ["measure"]

_MOST = 2048


def measure(place: Place) -> dict[str, float]:
    """Images per CPU-second of this thread."""
    torch.set_num_threads(1)
    decoding = decode_alone(place, _MOST)
    next(decoding)
    next(decoding)
    began, began_cpu = time.perf_counter(), time.thread_time()
    images = sum(decoding)
    cpu_s, wall_s = time.thread_time() - began_cpu, time.perf_counter() - began
    return {"images_per_s": images / wall_s, "images_per_cpu_s": images / cpu_s}
