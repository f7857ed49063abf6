"""Stoker's step fed by its loader, compared with the same step on synthetic batches, in alternating blocks.

While a synthetic block runs no loader does. A loader's block begins with a fresh iterator, whose first step is not
counted; it may hold four ready micro-batches at the block's end, which nobody gets for nothing in the next one.
"""

from __future__ import annotations

import itertools
import statistics
import time
from contextlib import closing

import torch
import torch.distributed as dist

from bench.train.ours import OurLoop, loaded, recipe_for, synthetic
from bench.train.place import Place
from bench.train.step import timed

__all__ = ["measure"]


def measure(
    place: Place, *, model: str, side: int, micro: int, micro_batches: int, blocks: int, steps: int
) -> dict[str, float]:
    """Return images per second of both in blocks of ``steps``, the median ratio of neighbours, and the data wait."""
    world_size, device = dist.get_world_size(), torch.device("cpu")
    recipe = recipe_for(
        model=model,
        side=side,
        micro=micro,
        micro_batches=micro_batches,
        world_size=world_size,
        data={"url": place.data, "decode_threads": 1, "memory_mb": 64},
    )
    loop, batches = OurLoop(recipe, device), synthetic(recipe, dist.get_rank(), world_size)
    loop.step(batches)
    images = recipe.batch.total * steps
    found: dict[str, list[float]] = {"images_per_s": [], "synthetic_images_per_s": [], "data_wait": []}
    for _ in range(blocks):
        seconds = sum(timed(loop, batches)[0] for _ in range(steps))
        found["synthetic_images_per_s"].append(images / seconds)
        with closing(loaded(recipe)) as steps_of_data:
            loop.step(next(steps_of_data))
            dist.barrier()
            began, waited = time.perf_counter(), 0.0
            asked = began
            for together in itertools.islice(steps_of_data, steps):
                waited += time.perf_counter() - asked
                loop.step(together)
                asked = time.perf_counter()
            dist.barrier()
            seconds = time.perf_counter() - began
        found["images_per_s"].append(images / seconds)
        found["data_wait"].append(waited / seconds)
    pairs = zip(found["images_per_s"], found["synthetic_images_per_s"], strict=True)
    return {name: statistics.median(values) for name, values in found.items()} | {
        "data_ratio": statistics.median(true / made for true, made in pairs)
    }
