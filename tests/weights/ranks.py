"""The same run on several numbers of gloo ranks, without Ray; processes are started once and reused."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import safetensors.torch
import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from torch import Tensor

from stoker.dataset import Loader
from stoker.models import build_model
from stoker.recipe import Recipe
from stoker.training.step.class_weights import balanced_weights, samples_by_class
from stoker.training.step.stepper import Stepper

__all__ = ["Trained", "sha256_of", "train_on_ranks"]


@dataclass(frozen=True)
class Trained:
    """The state of rank 0 after the run: weights and buffers, those of the moving average, and the run's sums."""

    weights: dict[str, Tensor]
    average: dict[str, Tensor]
    totals: list[float]
    """loss, correct predictions, samples; of the last epoch, over all ranks"""
    steps_redone: int
    bits_kept: int

    @property
    def sha256(self) -> str:
        return sha256_of(self.weights)


def sha256_of(tensors: dict[str, Tensor]) -> str:
    """Return the hash of the safetensors file with ``tensors``."""
    return hashlib.sha256(safetensors.torch.save({k: v.contiguous() for k, v in tensors.items()})).hexdigest()


def train_on_ranks(
    recipes: Sequence[Recipe], world_sizes: Sequence[int], folder: Path, steps: int
) -> list[dict[int, Trained]]:
    """Train each of ``recipes`` for ``steps`` steps on each number of ranks; returns {ranks: result} per recipe."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes.spawn(_rank, (port, recipes, world_sizes, folder, steps), nprocs=max(world_sizes))
    return [
        {size: torch.load(folder / f"{n}-{size}.pt", weights_only=False) for size in world_sizes}
        for n in range(len(recipes))
    ]


def _rank(
    rank: int, port: int, recipes: Sequence[Recipe], world_sizes: Sequence[int], folder: Path, steps: int
) -> None:
    store = dist.TCPStore("127.0.0.1", port, max(world_sizes), rank == 0)
    torch.set_num_threads(1)
    for n, recipe in enumerate(recipes):
        for size in world_sizes:
            if rank < size:
                group = dist.PrefixStore(f"{n}-{size}", store)
                dist.init_process_group("gloo", store=group, rank=rank, world_size=size)
                trained = _train(recipe, rank, size, steps)
                if rank == 0:
                    torch.save(trained, folder / f"{n}-{size}.pt")
                dist.destroy_process_group()
    # The store is in rank 0, which waits until all ranks are done with it.
    store.set(f"done-{rank}", "")
    if rank == 0:
        store.wait([f"done-{other}" for other in range(max(world_sizes))])


def _class_weights(recipe: Recipe, loader: Loader) -> torch.Tensor | None:
    if recipe.loss.class_weights == "none":
        return None
    return balanced_weights(samples_by_class(loader.label_counts(), len(loader.classes), torch.device("cpu")))


def _train(recipe: Recipe, rank: int, world_size: int, steps: int) -> Trained:
    loader = Loader.for_training(recipe, rank=rank, world_size=world_size)
    torch.manual_seed(recipe.seed)
    model = build_model(recipe.model.name, classes=len(loader.classes), drop_rate=recipe.model.drop_rate)
    stepper = Stepper(recipe, model, torch.device("cpu"), loader.steps, class_weights=_class_weights(recipe, loader))
    done, step = None, 0
    while step < steps:
        stepper.totals.zero_()
        for within, together in groupby(loader, key=lambda batch: batch.step):
            if step < steps:
                samples = min(recipe.batch.total, loader.samples - within * recipe.batch.total)
                done = stepper.run(list(together), step, samples)
                step += 1
    dist.all_reduce(stepper.totals)
    exactness = done.exactness if done else None
    return Trained(
        stepper.model.state_dict(),
        stepper.average.model.state_dict() if stepper.average else {},
        stepper.totals.tolist(),
        exactness.steps_redone if exactness else 0,
        exactness.bits_kept if exactness else 0,
    )
