"""The decode primitive alone: bytes in memory, one thread, into its place in a batch."""

from __future__ import annotations

import time

import torch

from bench.data.ours import decoders
from bench.data.place import BATCH, SIDE, Place

__all__ = ["measure"]

_MOST = 2048
_WARM = 32


def measure(place: Place) -> dict[str, float]:
    """Images per CPU-second of this thread."""
    torch.set_num_threads(1)
    decode = decoders(place, _MOST)
    batch = torch.empty((BATCH, 3, SIDE, SIDE), dtype=torch.uint8).to(memory_format=torch.channels_last)
    for n, one in enumerate(decode[:_WARM]):
        one(batch[n % BATCH])
    began, began_cpu = time.perf_counter(), time.thread_time()
    for n, one in enumerate(decode):
        one(batch[n % BATCH])
    cpu_s, wall_s = time.thread_time() - began_cpu, time.perf_counter() - began
    return {"images_per_s": len(decode) / wall_s, "images_per_cpu_s": len(decode) / cpu_s}
