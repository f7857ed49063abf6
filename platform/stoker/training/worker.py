"""What each rank of a run does: restore, stream, step, checkpoint, evaluate, and at the end report."""

from __future__ import annotations

import itertools
import json
import os
import time
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
import torch.distributed as dist

from stoker.command import quiet_libraries
from stoker.dataset import Batch, Loader
from stoker.errors import RunError
from stoker.recipe import Recipe
from stoker.storage import locate
from stoker.training.checkpoints import EMA, MODEL, OPTIMIZER, Checkpoint, CheckpointWriter, open_checkpoint
from stoker.training.evaluation import Evaluated, evaluate, parity_samples
from stoker.training.models import build_model
from stoker.training.optimizers import load_optimizer_tensors, optimizer_tensors
from stoker.training.recorder import Recorder, say
from stoker.training.result import close_run, versions
from stoker.training.runs import RunFolder
from stoker.training.step import Stepper

__all__ = ["train_worker"]


def train_worker(config: dict[str, Any]) -> None:
    """The function that Ray Train calls on every rank; ``config`` is ``{"recipe": …, "fingerprint": …}``."""
    quiet_libraries()
    recipe = Recipe.model_validate(config["recipe"])
    torch.set_num_threads(max(1, recipe.workers.cpus if not recipe.workers.gpus else 1))
    Worker(recipe, config["fingerprint"], ray.train.torch.get_device()).run()


class Worker:
    """One rank of a run, from its beginning or its last checkpoint to the end."""

    def __init__(self, recipe: Recipe, fingerprint: str, device: torch.device) -> None:
        self._recipe, self._fingerprint, self._device = recipe, fingerprint, device
        self._rank, self._world_size = dist.get_rank(), dist.get_world_size()
        self._run = RunFolder(locate(recipe.storage, patience_s=recipe.patience_s), recipe.name)
        ranks = {"rank": self._rank, "world_size": self._world_size}
        self._loader = Loader.for_training(recipe, **ranks)
        self._validation = Loader.for_evaluation(recipe, **ranks)
        self._classes = self._loader.classes
        torch.manual_seed(recipe.seed)
        model = build_model(recipe.model.name, classes=len(self._classes), drop_rate=recipe.model.drop_rate)
        self._stepper = Stepper(recipe, model, device, self._loader.steps)
        self._writer = CheckpointWriter(self._run.checkpoints, recipe.checkpoint.keep) if self._is_first else None
        self._step = 0
        self._recorder = Recorder(recipe, self._run, self._loader, device)
        self._trace = _Trace(recipe.trace_dir, self._rank) if recipe.trace_dir else None

    @property
    def _is_first(self) -> bool:
        return self._rank == 0

    def run(self) -> None:
        """Train to the recipe's last epoch and store the result."""
        try:
            self._restore()
            self._recorder.begin(self._step)
            self._run_epochs()
        finally:
            self._recorder.close()
        dist.barrier()

    def _run_epochs(self) -> None:
        steps_per_epoch, epochs = self._loader.steps, self._recipe.schedule.epochs
        evaluated = None
        for epoch in range(self._step // steps_per_epoch, epochs):
            evaluated = self._epoch(epoch)
            if self._step % self._recipe.checkpoint.every_steps == 0 or epoch + 1 == epochs:
                self._save()
        if evaluated is None:  # the checkpoint was the last, the result was not written
            evaluated = self._evaluate()
        if self._writer is not None:
            self._writer.close()
            self._finish(evaluated)

    def _epoch(self, epoch: int) -> Evaluated | None:
        rate = 0.0
        batches = iter(self._loader)
        while True:
            with self._recorder.clock.spent("data_wait"):
                together = list(itertools.islice(batches, len(self._loader.micro_batches)))
            if not together:
                break
            rate = self._one_step(together)
        evaluated = self._close_epoch(epoch, rate)
        self._stepper.totals.zero_()
        return evaluated

    def _one_step(self, batches: list[Batch]) -> float:
        total = self._recipe.batch.total
        samples = min(total, self._loader.samples - batches[0].step * total)
        rate = self._stepper.run(batches, self._step, samples)
        self._recorder.clock.add("communication", self._stepper.ranks_wait.take())
        self._step += 1
        if self._trace:
            self._trace.write(batches)
        self._recorder.stepped(self._step, rate, self._stepper.totals.tolist)
        if self._step % self._recipe.checkpoint.every_steps == 0 and self._step % self._loader.steps:
            self._save()
        return rate

    def _totals_of_all_ranks(self) -> list[float]:
        """Loss, correct predictions and samples of the epoch so far."""
        totals = self._stepper.totals.clone()
        dist.all_reduce(totals)
        return [float(value) for value in totals.tolist()]

    def _close_epoch(self, epoch: int, rate: float) -> Evaluated | None:
        totals = self._totals_of_all_ranks()
        is_last = epoch + 1 == self._recipe.schedule.epochs
        is_due = is_last or (epoch + 1) % self._recipe.evaluation.every_epochs == 0
        evaluated = self._evaluate() if is_due else None
        self._recorder.close_epoch(epoch, self._step, rate, totals, evaluated)
        return evaluated

    def _evaluate(self) -> Evaluated:
        model, normalize = self._stepper.evaluated_model, self._stepper.normalize
        with self._recorder.clock.spent("evaluation"):
            return evaluate(model, normalize, self._validation, len(self._classes))

    def _save(self) -> None:
        """Store a checkpoint; all ranks must call it."""
        totals = self._totals_of_all_ranks()  # on a GPU this waits for the steps under way: compute, no checkpoint
        if self._writer is not None:
            with self._recorder.clock.spent("checkpoint"):
                self._save_with(self._writer, totals)

    def _save_with(self, writer: CheckpointWriter, totals: list[float]) -> None:
        stepper = self._stepper
        tensors = {MODEL: stepper.model.state_dict(), OPTIMIZER: optimizer_tensors(stepper.optimizer, stepper.model)}
        if stepper.average:
            tensors[EMA] = stepper.average.model.state_dict()
        epoch, within = divmod(self._step, self._loader.steps)
        state = {
            "position": {"epoch": epoch, "step": within},
            "step": self._step,
            "totals": totals,
            "recorder": self._recorder.state(),
            "recipe": self._recipe.model_dump(mode="json"),
            "dataset_fingerprint": self._fingerprint,
            "versions": versions(),
        }
        writer.save(self._step, tensors, state)

    def _restore(self) -> None:
        """Go on from the newest checkpoint that rank 0 sees."""
        newest = self._run.latest_checkpoint() if self._is_first else None
        step = torch.tensor([newest.step if newest else -1], device=self._device)
        dist.broadcast(step, src=0)
        if (found := int(step.item())) < 0:
            return
        checkpoint = newest or open_checkpoint(self._run.checkpoints, found)
        self._load(checkpoint)
        if self._is_first:
            position = self._loader.state_dict()
            say(
                f"{self._recipe.name}: continuing from the checkpoint at step {self._step} "
                f"(epoch {position['epoch'] + 1}, step {position['step']} of it) with {self._world_size} workers"
            )

    def _load(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.state()
        if state["dataset_fingerprint"] != self._fingerprint:
            raise RunError(
                f"run {self._recipe.name!r} was trained on another data set "
                f"({state['dataset_fingerprint'][:23]}..., now {self._fingerprint[:23]}...); "
                "restore the data set or choose another name"
            )
        stepper = self._stepper
        stepper.model.load_state_dict(checkpoint.tensors(MODEL))
        if OPTIMIZER in checkpoint.files:
            load_optimizer_tensors(stepper.optimizer, stepper.model, checkpoint.tensors(OPTIMIZER))
        if stepper.average:
            stepper.average.model.load_state_dict(checkpoint.tensors(EMA))
        self._step = int(state["step"])
        if self._is_first:
            stepper.totals += torch.tensor(state["totals"], dtype=torch.float64, device=self._device)
        self._recorder.load_state(state["recorder"])
        self._loader.load_state_dict(state["position"])

    def _finish(self, evaluated: Evaluated) -> None:
        parity = parity_samples(self._stepper.evaluated_model, self._stepper.normalize, self._recipe)
        close_run(
            self._recipe,
            self._run,
            self._recorder.history,
            evaluated=evaluated,
            parity=parity,
            classes=self._classes,
            fingerprint=self._fingerprint,
        )


class _Trace:
    """Appends to a local file which samples this rank used at each step, for audits: one JSON line a step."""

    def __init__(self, folder: str, rank: int) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        self._file = (Path(folder) / f"{time.time_ns()}-{os.getpid()}-rank{rank}.jsonl").open("a")

    def write(self, batches: list[Batch]) -> None:
        numbers = [n for batch in batches for n in batch.numbers.tolist() if n >= 0]
        line = {"epoch": batches[0].epoch, "step": batches[0].step, "samples": numbers}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
