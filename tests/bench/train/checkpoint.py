"""The cost of a checkpoint to the step loop: the call itself, and the steps that it slows down while it is written.

Steps without a checkpoint in progress are the baseline; what the steps after a call take beyond it, until the
checkpoint is committed, counts as lost like the call itself. The fraction of wall time at one checkpoint a minute is
the seconds lost to one divided by 60.
"""

from __future__ import annotations

import statistics
import time
import uuid

import torch
import torch.distributed as dist

from bench.train.ours import Checkpoints, OurLoop, recipe_for, synthetic
from bench.train.place import Place
from stoker.dataset import Batch

__all__ = ["measure"]

_INTERVAL_S = 60.0


def measure(
    place: Place, *, model: str, side: int, micro: int, micro_batches: int, saves: int, quiet_steps: int
) -> dict[str, float]:
    """Return seconds of the call, of slowed steps, until the commit, and the fraction at one checkpoint a minute."""
    world_size = dist.get_world_size()
    recipe = recipe_for(model=model, side=side, micro=micro, micro_batches=micro_batches, world_size=world_size)
    loop, batches = OurLoop(recipe, torch.device("cpu")), synthetic(recipe, dist.get_rank(), world_size)
    writer = Checkpoints(f"{place.storage}/stall-{uuid.uuid4().hex[:8]}")
    loop.step(batches)
    found: dict[str, list[float]] = {name: [] for name in ("call_s", "slowed_s", "commit_s", "quiet_s")}
    for number in range(1, saves + 1):
        quiet = [_seconds(loop, batches) for _ in range(quiet_steps)]
        usual = statistics.median(quiet)
        began = time.perf_counter()
        writer.save(number, loop)
        called, slowed = time.perf_counter() - began, 0.0
        while not writer.is_committed:
            slowed += _seconds(loop, batches) - usual
        found["call_s"].append(called)
        found["slowed_s"].append(slowed)
        found["commit_s"].append(time.perf_counter() - began)
        found["quiet_s"].append(usual)
    size = sum(t.nbytes for tensors in loop.checkpoint_tensors().values() for t in tensors.values())
    writer.close()
    medians = {name: statistics.median(values) for name, values in found.items()}
    lost = statistics.median(a + max(0.0, b) for a, b in zip(found["call_s"], found["slowed_s"], strict=True))
    return medians | {"megabytes": size / 1e6, "stall_share": lost / _INTERVAL_S}


def _seconds(loop: OurLoop, batches: list[Batch]) -> float:
    began = time.perf_counter()
    loop.step(batches)
    return time.perf_counter() - began
