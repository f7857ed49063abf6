"""What a spawned process of a test does as one rank; here because a spawned process must be able to import it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from stoker.dataset import Loader
from stoker.dataset.decode import TrainingImages
from stoker.evaluation import evaluate
from stoker.models import build_model
from stoker.models.normalize import Normalize
from stoker.recipe import Recipe
from stoker.runs.folder import RunFolder
from stoker.storage import Location, locate
from stoker.training.checkpointing import PARTS
from stoker.training.fault_tolerance import circumstances
from stoker.training.fault_tolerance.circumstances import circumstances_of
from stoker.training.fault_tolerance.guard import Guard
from stoker.training.step.stepper import Stepper
from stoker.training.worker import Worker

__all__ = ["evaluate_rank", "late_rank", "restored_rank", "train_rank", "work"]


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


def evaluate_rank(rank: int, port: int, recipe: Recipe, result: str) -> None:
    """Evaluate on 3, then 2, then 1 of the 3 processes; what rank 0 found each time goes to ``result``."""
    torch.set_num_threads(1)
    found = []
    store = dist.TCPStore("127.0.0.1", port, 3, rank == 0)
    for world_size in (3, 2, 1):
        if rank < world_size:
            prefixed = dist.PrefixStore(str(world_size), store)
            dist.init_process_group("gloo", store=prefixed, rank=rank, world_size=world_size)
            torch.manual_seed(0)
            model, normalize = build_model("digitsnet", classes=3), Normalize((0.5,) * 3, (0.25,) * 3)
            validation = Loader.for_evaluation(recipe, rank=rank, world_size=world_size)
            evaluated = evaluate(model, normalize, validation, 3)
            mistakes = [mistake.model_dump_json() for mistake in evaluated.mistakes]
            counts = evaluated.confusion.tolist(), evaluated.top5_by_class.tolist()
            found.append([evaluated.metrics.model_dump_json(), mistakes, *counts])
            dist.destroy_process_group()
    if rank == 0:
        Path(result).write_text(json.dumps(found))
    store.add("done", 1)
    while rank == 0 and store.add("done", 0) < 3:  # the store lives in this process
        time.sleep(0.01)


def work(recipe: Recipe) -> None:
    """Do what a worker of the run ``recipe`` does, as a rank of this process's group, without Ray."""
    device = torch.device("cpu")
    run = RunFolder(locate(recipe.storage), recipe.name)
    with Guard(recipe, run, "", device) as guard:
        Worker(recipe, "sha256:" + "0" * 64, device, run, guard).run()


def late_rank(rank: int, port: int, recipe: Recipe, late_s: float) -> None:
    """One of two ranks of a run; rank 1 gets each of its micro-batches ``late_s`` seconds late."""
    store = dist.TCPStore("127.0.0.1", port, 2, rank == 0)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    torch.set_num_threads(1)
    decode = TrainingImages.decode

    def slow(*arguments: object) -> object:
        time.sleep(late_s)
        return decode(*arguments)  # type: ignore[arg-type]

    if rank == 1:
        TrainingImages.decode = slow  # type: ignore[method-assign,assignment]
    work(recipe)
    dist.destroy_process_group()


def restored_rank(rank: int, port: int, recipe: Recipe, fresh: Recipe, folder: str) -> None:
    """One of two ranks that train a run and restore it twice, the second time damaged, and then start another.

    Writes to ``folder``, a file a rank: the tensors after each restoration, what it read, and what was raised.
    """
    store = dist.TCPStore("127.0.0.1", port, 2, rank == 0)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    torch.set_num_threads(1)
    read: list[str] = []
    plain = Location.read

    def spied(place: Location, *arguments: Any) -> bytes:
        read.append(place.url)
        return plain(place, *arguments)

    work(recipe)
    Location.read = spied  # type: ignore[method-assign]
    circumstances._here = lambda: (f"node {rank}", f"host {rank}")
    found: dict[str, Any] = {}
    for what, chosen in (("resumed", recipe), ("damaged", recipe), ("fresh", fresh)):
        run = RunFolder(locate(chosen.storage, timeout_s=1), chosen.name)
        if what == "damaged" and rank == 0:
            newest = run.latest_checkpoint()
            assert newest is not None
            (newest.location / "optimizer.safetensors").write(b"other bytes")
        dist.barrier()
        torch.manual_seed(7)  # other weights than those that come back
        with Guard(chosen, run, "", torch.device("cpu")) as guard:
            worker = Worker(chosen, "sha256:" + "0" * 64, torch.device("cpu"), run, guard)
            read.clear()
            error = node = ""
            try:
                worker._checkpoints.restore()
            except Exception as raised:
                error = f"{type(raised).__name__}: {raised}"
                where = circumstances_of(raised)
                assert where is not None
                node = where.node
            tensors = {part.file: part.save(worker._stepper) for part in PARTS}
            found[what] = {"tensors": tensors, "read": list(read), "error": error, "node": node}
            worker._recorder.close()
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
