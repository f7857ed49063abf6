"""One loop on one GPU (or, to check that the code runs, on the CPU) on one source of batches.

The clock runs from a synchronised device to a synchronised device, over ``steps`` steps after some that are not
counted; in between nobody waits for the device but the loop under measurement. What the host waits for in a step is
counted afterwards, because counting takes time.
"""

from __future__ import annotations

import itertools
import resource
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from bench.train.ours import OurLoop, compile_quickly, loaded, make_model, recipe_for, synthetic
from bench.train.place import Place
from bench.train.plain import PlainLoop
from stoker.dataset import Batch
from stoker.recipe import Recipe
from stoker.training.step.numerics import configure_numerics

__all__ = ["measure", "synchronisations"]

_SMOOTHING = 0.1
"""of the labels: torchvision's recipe, and ours in this benchmark"""
_WATCHED_STEPS = 4


def measure(
    place: Place,
    *,
    device: Literal["cuda", "cpu"],
    loop: Literal["stoker", "plain"],
    model: str,
    side: int,
    micro: int,
    warm: int,
    steps: int,
    decode_threads: int,
    source: Literal["synthetic", "cpu", "gpu", "cache"] = "synthetic",
    compiles: bool = False,
    exact: bool = False,
) -> dict[str, float]:
    """Return images per second, milliseconds a step, what the host waited for, and memory.

    ``goodput`` is the fraction of wall time in which the loop did not wait for a batch, ``synchronisations`` (on a GPU)
    how often a step made the host wait for it, ``memory_mb`` the most that was allocated on the device (on a CPU, the
    process's largest resident set).
    """
    where = torch.device(device, 0)
    if device == "cpu":
        compile_quickly()
    data: dict[str, Any] = {"url": place.data, "decode_threads": decode_threads, "memory_mb": 2048}
    if source == "cache":
        data["cache_dir"] = str(Path(place.folder) / "node-cache")
    recipe = recipe_for(
        model=model,
        side=side,
        micro=micro,
        micro_batches=1,
        world_size=1,
        data=data | ({"decode": "gpu"} if source == "gpu" and device == "cuda" else {}),
        loss={"label_smoothing": _SMOOTHING},
        precision="bfloat16",
        compile=compiles and loop == "stoker",
        reproducible=exact,
        workers={"min": 1, "max": 1, "gpus": int(device == "cuda"), "cpus": max(1, decode_threads)},
    )
    made = _loop(recipe, where, loop, compiles=compiles)
    batches = _batches(recipe, where, source)
    for number, together in enumerate(batches, start=1):
        made.step(together)
        # a cache is full after an epoch
        if number >= warm and (source != "cache" or together[0].epoch > 0):
            break
    _synchronise(where)
    if device == "cuda":  # what compiling and autotuning took is not the step's
        torch.cuda.reset_peak_memory_stats(where)
    began, waited = time.perf_counter(), 0.0
    for _ in range(steps):
        asked = time.perf_counter()
        together = next(batches)
        waited += time.perf_counter() - asked
        made.step(together)
    _synchronise(where)
    seconds = time.perf_counter() - began
    found = {
        "images_per_s": steps * micro / seconds,
        "step_ms": 1e3 * seconds / steps,
        "goodput": 1 - waited / seconds,
        "memory_mb": _memory_mb(where),
    }
    if source == "synthetic" and device == "cuda":  # with a loader the decode threads' waits would count too
        watched = [lambda: made.step(next(batches))] * _WATCHED_STEPS
        found["synchronisations"] = synchronisations(watched)
    return found


def _loop(recipe: Recipe, device: torch.device, kind: str, *, compiles: bool) -> OurLoop | PlainLoop:
    if kind == "stoker":
        return OurLoop(recipe, device)
    configure_numerics(recipe)  # the same kernels for both
    return PlainLoop(make_model(recipe), device, bfloat16=True, smoothing=_SMOOTHING, compiles=compiles)


def _batches(recipe: Recipe, device: torch.device, source: str) -> Iterator[list[Batch]]:
    if source != "synthetic":
        return loaded(recipe, as_on_gpu=source == "gpu" and device.type != "cuda")
    batches = synthetic(recipe, 0, 1)
    if device.type == "cuda":
        batches = [
            Batch(b.images.pin_memory(), b.labels.pin_memory(), b.numbers, b.epoch, b.step, b.micro_batch)
            for b in batches
        ]
    return itertools.repeat(batches)


def synchronisations(steps: Sequence[Callable[[], None]]) -> float:
    """How often the host waited for the GPU in one of ``steps``, on average, by torch's own warnings."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for step in steps:
                step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(warning.message) for warning in caught) / len(steps)


def _memory_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
