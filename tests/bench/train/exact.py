"""What exact sums cost: steps with and without them in turn, in the same processes, on the same batches.

    PYTHONPATH=tests python -m bench.train.exact            ResNet-50, 224 pixels, micro-batches of 16, 2 gloo ranks
    PYTHONPATH=tests python -m bench.train.exact resnet18 32 16 2 30

Arguments: model, image size, micro-batch, ranks, pairs of steps. A rank does two micro-batches a step, so that both
ways in which a gradient is rounded take part: with and without communication.
"""

from __future__ import annotations

import json
import socket
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as processes

from stoker.dataset import Batch
from stoker.models import build_model
from stoker.recipe import Recipe, parse_recipe
from stoker.training.step.stepper import Stepper

__all__ = ["Cost", "measure"]

_RECIPE = """
name: exact
storage: /nowhere
data: {{url: /nowhere, image_size: {image_size}}}
model: {{name: {model}}}
batch: {{total: {total}, micro: {micro}}}
optimizer: {{lr: 0.01}}
schedule: {{epochs: 1}}
reproducible: {exact}
precision: {precision}
workers: {{min: {ranks}, max: {ranks}, gpus: 0, cpus: 1}}
"""
_EACH = 2  # micro-batches of a rank
_CLASSES = 1000


@dataclass(frozen=True)
class Cost:
    """Seconds a step (medians), and medians over pairs of neighbouring steps of exact by float, minus 1.

    ``share`` is the added fraction of wall time; ``processor_share`` that of rank 0's
    processor time, which other programs on the machine hardly change.
    """

    model: str
    image_size: int
    micro: int
    ranks: int
    pairs: int
    float_s: float
    exact_s: float
    share: float
    processor_share: float
    bits_kept: int
    steps_redone: int


def measure(
    model: str = "resnet50",
    image_size: int = 224,
    micro: int = 16,
    ranks: int = 2,
    pairs: int = 5,
    precision: str = "float32",
) -> Cost:
    """The cost of exact sums on ``ranks`` gloo ranks with one CPU thread each; the bar is a ``share`` of 0.05."""
    with socket.socket() as probe, tempfile.TemporaryDirectory() as folder:
        probe.bind(("127.0.0.1", 0))
        port, result = probe.getsockname()[1], Path(folder) / "cost.json"
        probe.close()
        values = {"model": model, "image_size": image_size, "micro": micro, "ranks": ranks, "precision": precision}
        recipes = [
            parse_recipe(_RECIPE.format(**values, total=micro * ranks * _EACH, exact=exact), "exact.yaml")
            for exact in ("false", "true")
        ]
        processes.spawn(_rank, (port, recipes, pairs, str(result)), nprocs=ranks)
        return Cost(**json.loads(result.read_text()))


def _rank(rank: int, port: int, recipes: list[Recipe], pairs: int, result: str) -> None:
    recipe = recipes[0]
    ranks = recipe.workers.max
    store = dist.TCPStore("127.0.0.1", port, ranks, rank == 0)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    torch.set_num_threads(1)
    steppers = []
    for each in recipes:
        torch.manual_seed(0)
        steppers.append(Stepper(each, build_model(each.model.name, classes=_CLASSES), torch.device("cpu"), 1000))
    seconds: list[list[float]] = [[], []]
    processor: list[list[float]] = [[], []]
    done = None
    for step in range(pairs + 2):
        batches = [_batch(recipe, rank * _EACH + n, step) for n in range(_EACH)]
        for which in (0, 1) if step % 2 else (1, 0):
            dist.barrier()
            began, spent = time.perf_counter(), time.process_time()
            outcome = steppers[which].run(batches, step, recipe.batch.total)
            dist.barrier()
            if step > 1:  # the first two build buckets and find the grid
                seconds[which].append(time.perf_counter() - began)
                processor[which].append(time.process_time() - spent)
            done = outcome if which else done
    assert done is not None
    assert done.exactness is not None
    if rank == 0:
        cost = Cost(
            model=recipe.model.name,
            image_size=recipe.data.image_size,
            micro=recipe.batch.micro,
            ranks=ranks,
            pairs=pairs,
            float_s=statistics.median(seconds[0]),
            exact_s=statistics.median(seconds[1]),
            share=_overhead(seconds),
            processor_share=_overhead(processor),
            bits_kept=done.exactness.bits_kept,
            steps_redone=done.exactness.steps_redone,
        )
        Path(result).write_text(json.dumps(asdict(cost)))
    dist.destroy_process_group()


def _overhead(seconds: list[list[float]]) -> float:
    return statistics.median(exact / plain for plain, exact in zip(*seconds, strict=True)) - 1


def _batch(recipe: Recipe, micro_batch: int, step: int) -> Batch:
    size, side = recipe.batch.micro, recipe.data.image_size
    noise = torch.Generator().manual_seed(1000 * step + micro_batch)
    images = torch.randint(0, 256, (size, 3, side, side), dtype=torch.uint8, generator=noise)
    labels = torch.randint(0, _CLASSES, (size,), generator=noise)
    numbers = torch.arange(size) + size * micro_batch
    return Batch(images.to(memory_format=torch.channels_last), labels, numbers, 0, step, micro_batch)


if __name__ == "__main__":
    arguments = dict(zip(("image_size", "micro", "ranks", "pairs"), map(int, sys.argv[2:]), strict=False))
    print(json.dumps(asdict(measure(*sys.argv[1:2], **arguments))))
