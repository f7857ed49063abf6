"""One loop on one GPU (or, to check that the code runs, on the CPU) on one source of batches.

The clock runs from a synchronised device to a synchronised device, over ``steps`` steps after some that are not
counted; in between nobody waits for the device but the loop under measurement.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Literal

import torch

from bench.train.ours import OurLoop, loaded, make_model, recipe_for, synthetic
from bench.train.place import Place
from bench.train.plain import PlainLoop
from stoker.dataset import Batch

__all__ = ["measure"]

_SMOOTHING = 0.1
"""of the labels: torchvision's recipe, and ours in this benchmark"""


def measure(
    place: Place,
    *,
    device: Literal["cuda", "cpu"],
    loop: Literal["stoker", "plain"],
    source: Literal["synthetic", "cpu", "gpu"],
    model: str,
    side: int,
    micro: int,
    warm: int,
    steps: int,
    compiles: bool,
    decode_threads: int,
) -> dict[str, float]:
    """Return images per second, and goodput: the fraction of wall time in which the loop did not wait for a batch."""
    torch.backends.cudnn.benchmark = True
    where = torch.device(device)
    recipe = recipe_for(
        model=model,
        side=side,
        micro=micro,
        micro_batches=1,
        world_size=1,
        data={
            "url": place.data,
            "decode": "gpu" if source == "gpu" else "cpu",
            "decode_threads": decode_threads,
            "memory_mb": 2048,
        },
        loss={"label_smoothing": _SMOOTHING},
        precision="bfloat16",
        compile=compiles and loop == "stoker",
        workers={"min": 1, "max": 1, "gpus": int(device == "cuda"), "cpus": max(1, decode_threads)},
    )
    made = (
        OurLoop(recipe, where)
        if loop == "stoker"
        else PlainLoop(make_model(recipe), where, bfloat16=True, smoothing=_SMOOTHING)
    )
    steps_of_batches = _synthetic_steps(synthetic(recipe, 0, 1), where) if source == "synthetic" else loaded(recipe)
    for batches in itertools.islice(steps_of_batches, warm):
        made.step(batches)
    _synchronise(where)
    began, waited = time.perf_counter(), 0.0
    for _ in range(steps):
        asked = time.perf_counter()
        batches = next(steps_of_batches)
        waited += time.perf_counter() - asked
        made.step(batches)
    _synchronise(where)
    seconds = time.perf_counter() - began
    return {"images_per_s": steps * micro / seconds, "step_ms": 1e3 * seconds / steps, "goodput": 1 - waited / seconds}


def _synthetic_steps(batches: list[Batch], device: torch.device) -> Iterator[list[Batch]]:
    if device.type == "cuda":
        batches = [
            Batch(b.images.pin_memory(), b.labels.pin_memory(), b.numbers, b.epoch, b.step, b.micro_batch)
            for b in batches
        ]
    return itertools.repeat(batches)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
