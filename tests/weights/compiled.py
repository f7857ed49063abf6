"""A compiled run on gloo ranks, through all sizes of its images or resumed at the last of them, without Ray."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from torch import Tensor

from stoker.dataset import Batch, Loader
from stoker.models import build_model
from stoker.recipe import Recipe
from stoker.training.optim.optimizers import load_optimizer_tensors, optimizer_tensors
from stoker.training.step.stepper import Stepper

__all__ = ["train_through_sizes"]


def train_through_sizes(
    recipe: Recipe, world_size: int, folder: Path, *, resumed_from: Path | None = None
) -> dict[str, Tensor]:
    """Train all epochs of ``recipe`` on ``world_size`` ranks in fresh processes; returns the weights and ``graphs``.

    ``graphs`` is the number of graphs that rank 0 compiled. What an earlier run left before its last epoch at
    ``folder / "before-last.pt"`` is a checkpoint that ``resumed_from`` names.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder.mkdir()
    processes.spawn(_rank, (world_size, port, recipe, folder, resumed_from), nprocs=world_size)
    return torch.load(folder / "last.pt", weights_only=True)


def _rank(rank: int, world_size: int, port: int, recipe: Recipe, folder: Path, resumed_from: Path | None) -> None:
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder.parent / "inductor")
    store = dist.TCPStore("127.0.0.1", port, world_size, rank == 0)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    torch.set_num_threads(1)
    torch.manual_seed(recipe.seed)
    loader = Loader.for_training(recipe, rank=rank, world_size=world_size)
    model = build_model(recipe.model.name, classes=len(loader.classes), drop_rate=recipe.model.drop_rate)
    stepper = Stepper(recipe, model, torch.device("cpu"), loader.steps)
    epochs = recipe.schedule.epochs
    first = epochs - 1 if resumed_from else 0
    if resumed_from:
        _load(stepper, resumed_from)
        loader.load_state_dict({"epoch": first, "step": 0})
    for epoch in range(first, epochs):
        if rank == 0 and epoch == epochs - 1:
            torch.save(_state(stepper), folder / "before-last.pt")
        for within, together in _steps(loader):
            samples = min(recipe.batch.total, loader.samples - within * recipe.batch.total)
            stepper.run(together, epoch * loader.steps + within, samples)
    if rank == 0:
        from torch._dynamo.utils import counters

        graphs = torch.tensor(counters["stats"]["unique_graphs"])
        torch.save({**stepper.model.state_dict(), "graphs": graphs}, folder / "last.pt")
    dist.destroy_process_group()


def _steps(loader: Loader) -> Iterator[tuple[int, list[Batch]]]:
    for within, together in groupby(loader, key=lambda batch: batch.step):
        yield within, list(together)


def _state(stepper: Stepper) -> dict[str, dict[str, Tensor]]:
    return {
        "model": stepper.model.state_dict(),
        "optimizer": optimizer_tensors(stepper.optimizer, stepper.model),
        "more": stepper.state_tensors(),
    }


def _load(stepper: Stepper, place: Path) -> None:
    state = torch.load(place, weights_only=True)
    stepper.model.load_state_dict(state["model"])
    load_optimizer_tensors(stepper.optimizer, stepper.model, state["optimizer"])
    stepper.load_state_tensors(state["more"])
