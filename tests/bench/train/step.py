"""Stoker's step compared with a plain loop of the same model on the same batches, alternating in one process.

Both are warm; which of a pair comes first alternates. A pair's ratio is by the clock of the slower rank, and by the
CPU time of all ranks (which the other programs of a shared machine hardly move).
"""

from __future__ import annotations

import statistics
import time

import torch
import torch.distributed as dist

from bench.train.ours import OurLoop, make_model, recipe_for, synthetic
from bench.train.place import Place
from bench.train.plain import PlainLoop
from stoker.dataset import Batch

__all__ = ["measure", "timed"]

_WARM_STEPS = 2


def measure(
    place: Place, *, model: str, side: int, micro: int, micro_batches: int, pairs: int, **changed: object
) -> dict[str, float]:
    """Return milliseconds per step and images per second of both, and the medians of the pairs' ratios."""
    del place
    rank, world_size, device = dist.get_rank(), dist.get_world_size(), torch.device("cpu")
    recipe = recipe_for(
        model=model, side=side, micro=micro, micro_batches=micro_batches, world_size=world_size, **changed
    )
    loops = {"stoker": OurLoop(recipe, device), "plain": PlainLoop(make_model(recipe), device)}
    batches = synthetic(recipe, rank, world_size)
    for loop in loops.values():
        for _ in range(_WARM_STEPS):
            loop.step(batches)
    wall: dict[str, list[float]] = {name: [] for name in loops}
    cpu: dict[str, list[float]] = {name: [] for name in loops}
    for number in range(pairs):
        for name in sorted(loops, reverse=bool(number % 2)):
            seconds, used = timed(loops[name], batches)
            wall[name].append(seconds)
            cpu[name].append(used)
    images = recipe.batch.total
    found = {"pairs": float(pairs)}
    for name, prefix in (("stoker", ""), ("plain", "plain_")):
        found[f"{prefix}step_ms"] = 1e3 * statistics.median(wall[name])
        found[f"{prefix}images_per_s"] = images / statistics.median(wall[name])
    for kind, times in (("time", wall), ("cpu", cpu)):
        found[f"{kind}_ratio"] = statistics.median(a / b for a, b in zip(times["stoker"], times["plain"], strict=True))
    return found


def timed(loop: OurLoop | PlainLoop, batches: list[Batch]) -> tuple[float, float]:
    """(seconds of the slowest rank, CPU seconds of all ranks) of one step that all begin together."""
    dist.barrier()
    began, used = time.perf_counter(), time.process_time()
    loop.step(batches)
    took = torch.tensor([time.perf_counter() - began], dtype=torch.float64)
    cpu = torch.tensor([time.process_time() - used], dtype=torch.float64)
    dist.all_reduce(took, op=dist.ReduceOp.MAX)
    dist.all_reduce(cpu)
    return float(took), float(cpu)
