"""Peak memory of a rank at ImageNet's shape: 256 slots on one rank, a split as long as ImageNet's."""

from __future__ import annotations

import torch

from bench.data.ours import loader
from bench.data.place import Place
from bench.meter import memory_bytes, peak_memory_bytes, restart_peak_memory

__all__ = ["measure"]

_SLOTS = 256
_STEPS = 60
"""more than a window of each slot (32 samples at the defaults), so that a whole one is replaced by the next"""


def measure(place: Place) -> dict[str, float]:
    """MiB (2^20 bytes) above what imports left, and the stated bound.

    The split is our data set named over and over in one manifest, so its shards' bytes are real.
    """
    torch.set_num_threads(1)
    torch.zeros(1)
    restart_peak_memory()
    before = memory_bytes()
    made = loader(place, "s3", kind="imagenet_shape", global_batch=_SLOTS)
    for batch in made:
        if batch.step == min(_STEPS, made.steps - 1):
            break
    peak = peak_memory_bytes() - before
    bound = made.memory_bound_bytes
    return {"peak_mib": peak / 2**20, "bound_mib": bound / 2**20, "share_of_bound": peak / bound}
