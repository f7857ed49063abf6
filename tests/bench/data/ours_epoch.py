"""One epoch of stoker's loader: images by the clock and by CPU time, and the time to the first batch."""

from __future__ import annotations

import time

import torch

from bench.data.ours import loader
from bench.data.place import WORKERS, Place
from bench.meter import Meter

__all__ = ["measure"]


def measure(place: Place, *, source: str, decode_threads: int = WORKERS) -> dict[str, float]:
    """What one epoch takes; from the node's cache it is the second one, after an uncounted first that fills it."""
    torch.set_num_threads(1)
    meter = Meter()
    made = loader(place, source, decode_threads=decode_threads, epochs=2 if source == "cache" else 1)
    filled = sum(batch.size for batch in made) if source == "cache" else place.images
    if source == "cache":
        meter = Meter()
    read_before = made.bytes_read
    first_s, images, touched = None, 0, 0
    began = time.perf_counter()
    for batch in made:
        if first_s is None:
            first_s = meter.wall_s
        images += batch.size
        touched += int(batch.images[0, 0, 0, 0])
    wall_s = time.perf_counter() - began
    _, cpu_s = meter.stop()
    if not filled == images == place.images:
        raise RuntimeError(f"the loader gave {images} images, not {place.images}")
    assert first_s is not None
    found = {"images_per_s": images / wall_s, "images_per_cpu_s": images / cpu_s, "first_batch_s": first_s}
    if source == "cache":
        found["store_mb"] = (made.bytes_read - read_before) / 1e6
    return found
