"""What a spawned process of a test does as one rank; here because a spawned process must be able to import it."""

from __future__ import annotations

import torch
import torch.distributed as dist

from stoker.dataset import Loader
from stoker.recipe import Recipe
from stoker.training.evaluation import evaluate
from stoker.training.models import build_model
from stoker.training.step import Stepper

__all__ = ["train_rank"]


def train_rank(rank: int, world_size: int, port: int, recipe: Recipe, result: str) -> None:
    store = dist.TCPStore("127.0.0.1", port, world_size, rank == 0)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    loader = Loader.for_training(recipe, rank=rank, world_size=world_size)
    stepper = Stepper(recipe, build_model("digitsnet", classes=3), torch.device("cpu"), loader.steps)
    taken = list(loader)
    for step in range(loader.steps):
        batches = [batch for batch in taken if batch.step == step]
        stepper.run(batches, step, min(24, loader.samples - 24 * step))
    dist.all_reduce(stepper.totals)
    validation = Loader.for_evaluation(recipe, rank=rank, world_size=world_size)
    evaluated = evaluate(stepper.evaluated_model, stepper.normalize, validation, 3)
    if rank == 0:
        told = {"totals": stepper.totals, "metrics": torch.tensor(list(evaluated.metrics.model_dump().values()))}
        torch.save(stepper.model.state_dict() | told, result)
    dist.destroy_process_group()
