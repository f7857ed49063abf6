"""Define what a checkpoint holds, and save and restore it.

    model.safetensors       weights and running statistics                             table PARTS
    optimizer.safetensors   momentum and the like, as <parameter>/<name>                    |
    step.safetensors        exact sums' grid and the loss scale, where the run has them     |
    ema.safetensors         the moving average of the weights, where the run has one        |
    state.json              position, totals, history, recipe, versions                class TrainState

A new tensor file is a row of ``PARTS``; a new value is a field of :class:`TrainState`. ``runs.checkpoint_writer``
writes them in the background and commits them; ``runs.checkpoints`` reads them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from pydantic import ValidationError
from torch import Tensor

from stoker.dataset import Loader
from stoker.errors import RunError
from stoker.models.build import as_state_dict
from stoker.models.initialize import initial_weights
from stoker.recipe import Recipe
from stoker.runs.checkpoint_writer import CheckpointWriter
from stoker.runs.checkpoints import EMA, MODEL, OPTIMIZER, STATE, STEP, Checkpoint
from stoker.runs.folder import RunFolder
from stoker.runs.records import Record
from stoker.training.broadcast import from_rank_zero, tensors_from_rank_zero
from stoker.training.fault_tolerance.guard import Guard
from stoker.training.optim.optimizers import load_optimizer_tensors, optimizer_tensors
from stoker.training.report.result import versions
from stoker.training.step.numerics import set_cpu_threads
from stoker.training.step.stepper import Stepper
from stoker.training.telemetry.recorder import Recorder, RecorderState, print_line

__all__ = ["PARTS", "Checkpointing", "Part", "TrainState"]

Tensors = dict[str, Tensor]


class TrainState(Record):
    """``state.json``: all of a run's state that is not tensors, after ``step`` steps of the run."""

    position: dict[str, int]
    """the loader's ``state_dict()``: ``{"epoch": …, "step": …}``, both from 0"""
    step: int
    """steps since the start of the run"""
    totals: tuple[float, float, float]
    """loss, correct predictions and samples of the epoch so far, over all ranks"""
    recorder: RecorderState
    """history and goodput so far"""
    skipped_steps: tuple[int, ...] = ()
    """steps that are skipped because their loss was not finite, ascending"""
    best_accuracy: float = -1.0
    """on the validation split, 0 to 1, of all evaluations so far; -1 before the first"""
    recipe: dict[str, Any]
    """the resolved recipe"""
    dataset_fingerprint: str
    threads: int | None = None
    """CPU threads a worker computes with, on which the sums inside a convolution depend"""
    versions: dict[str, str]
    """of Python, stoker, torch, torchvision and Ray, and the device"""


class Part(NamedTuple):
    """A tensor file of a checkpoint."""

    file: str
    save: Callable[[Stepper], Tensors]
    """its tensors; none, and then no file, where the run has no such part"""
    load: Callable[[Stepper, Tensors], object]
    is_required: Callable[[Stepper], bool] = lambda _: False
    """whether a run cannot resume without it"""


def _save_average(stepper: Stepper) -> Tensors:
    return dict(stepper.average.model.state_dict()) if stepper.average else {}


def _load_average(stepper: Stepper, tensors: Tensors) -> None:
    if stepper.average:
        stepper.average.model.load_state_dict(as_state_dict(stepper.average.model, tensors))


PARTS = (
    Part(
        MODEL,
        lambda stepper: dict(stepper.model.state_dict()),
        lambda stepper, tensors: stepper.model.load_state_dict(as_state_dict(stepper.model, tensors)),
        is_required=lambda _: True,
    ),
    Part(
        OPTIMIZER,
        lambda stepper: optimizer_tensors(stepper.optimizer, stepper.model),
        lambda stepper, tensors: load_optimizer_tensors(stepper.optimizer, stepper.model, tensors),
    ),
    Part(STEP, Stepper.state_tensors, Stepper.load_state_tensors),
    Part(EMA, _save_average, _load_average, is_required=lambda stepper: stepper.average is not None),
)


class Checkpointing:
    """Saves and restores the state of one rank. Rank 0 writes; all ranks must make the same calls.

    ``stepper``, ``loader`` and ``recorder`` are what is saved and restored; ``guard`` has the fence that commits.
    """

    def __init__(
        self,
        recipe: Recipe,
        fingerprint: str,
        run: RunFolder,
        guard: Guard,
        *,
        stepper: Stepper,
        loader: Loader,
        recorder: Recorder,
    ) -> None:
        self._recipe, self._fingerprint, self._run, self._guard = recipe, fingerprint, run, guard
        self._stepper, self._loader, self._recorder = stepper, loader, recorder
        self._device = stepper.totals.device
        self._best_accuracy = -1.0
        policy = recipe.checkpoint
        self._writer = (
            CheckpointWriter(run.checkpoints, policy.keep, keeps_best=policy.keep_best, fence=guard.fence)
            if dist.get_rank() == 0
            else None
        )

    def is_due(self, step: int) -> bool:
        """Whether the recipe wants a checkpoint after ``step`` steps of the run."""
        return step % self._recipe.checkpoint.every_steps == 0

    def is_best(self, accuracy: float) -> bool:
        """Whether ``accuracy`` (0 to 1) is the best so far and the recipe keeps the best checkpoint; remembers it."""
        is_best = self._recipe.checkpoint.keep_best and accuracy > self._best_accuracy
        self._best_accuracy = max(self._best_accuracy, accuracy)
        return is_best

    def save(self, step: int, totals: tuple[float, float, float], accuracy: float | None = None) -> None:
        """Start to store a checkpoint after ``step`` steps, with the epoch's ``totals`` over all ranks so far.

        Raises:
            StorageError: the previous checkpoint could not be written.
        """
        if self._writer is None:
            return
        with self._recorder.clock.measure("checkpoint"):
            epoch, step_of_epoch = divmod(step, self._loader.steps)
            state = TrainState(
                position={"epoch": epoch, "step": step_of_epoch},
                step=step,
                totals=totals,
                recorder=self._recorder.state(),
                skipped_steps=tuple(self._guard.skipped),
                best_accuracy=self._best_accuracy,
                recipe=self._recipe.model_dump(mode="json"),
                dataset_fingerprint=self._fingerprint,
                threads=torch.get_num_threads(),
                versions=versions(),
            )
            tensors = {part.file: part.save(self._stepper) for part in PARTS}
            self._writer.save(step, tensors, state.model_dump(mode="json"), accuracy)

    def restore(self) -> int:
        """Load the newest checkpoint, else the recipe's initial weights; returns its step, or 0.

        Rank 0 alone reads them, the others get them from it; all raise what it raises.

        Raises:
            RunError: the checkpoint was trained on another data set, or lacks a part or is damaged; or a newer attempt
                at the run has begun.
            ModelError: the initial weights do not fit.
            StorageError: what is needed cannot be read.
        """
        found = from_rank_zero(self._find, self._device)
        if found is None:
            self._load_initial_weights()
            return 0
        newest = Checkpoint(found["step"], self._run.checkpoints / found["folder"], found["files"])
        newest_step = newest.step
        self._load(newest)
        if self._writer is not None:
            position = self._loader.state_dict()
            print_line(
                f"{self._recipe.name}: resuming from the checkpoint at step {newest_step} "
                f"(epoch {position['epoch'] + 1}, step {position['step']} of it) with {dist.get_world_size()} workers"
            )
        return newest_step

    def close(self) -> None:
        """Wait until the last checkpoint is committed.

        Raises:
            StorageError: it could not be written.
        """
        if self._writer is not None:
            self._writer.close()

    def _find(self) -> dict[str, Any] | None:
        """Rank 0: claim the run and find its newest checkpoint."""
        assert self._writer is not None
        self._guard.fence.claim()
        self._writer.clean()
        if (newest := self._run.latest_checkpoint()) is None:
            return None
        return {"step": newest.step, "folder": newest.location.name, "files": newest.files}

    def _load_initial_weights(self) -> None:
        if self._recipe.model.weights is None:
            return
        stepper = self._stepper
        tensors = tensors_from_rank_zero(lambda: initial_weights(self._recipe, self._loader.classes), self._device)
        for model in [stepper.model, *([stepper.average.model] if stepper.average else [])]:
            model.load_state_dict(as_state_dict(model, tensors), strict=False)

    def _load(self, checkpoint: Checkpoint) -> None:
        remedy = f"delete the manifest {checkpoint.step:08d}.json to resume from the previous checkpoint"
        try:
            state = TrainState.model_validate(from_rank_zero(checkpoint.state, self._device))
        except ValidationError as error:
            raise RunError(
                f"{checkpoint.location / STATE}: damaged ({error.error_count()} fields are wrong); {remedy}"
            ) from None
        if state.dataset_fingerprint != self._fingerprint:
            raise RunError(
                f"run {self._recipe.name!r} was trained on another data set "
                f"({state.dataset_fingerprint[:23]}..., now {self._fingerprint[:23]}...); "
                "restore the data set or choose another name"
            )
        for part in PARTS:
            if part.file in checkpoint.files:
                self._guard.heartbeat()
                read = functools.partial(checkpoint.tensors, part.file)
                part.load(self._stepper, tensors_from_rank_zero(read, self._device))
            elif part.is_required(self._stepper):
                raise RunError(f"{checkpoint.location}: the checkpoint has no {part.file}; {remedy}")
        self._restore_threads(state.threads)
        self._best_accuracy = state.best_accuracy
        if self._writer is not None:
            totals = self._stepper.totals
            totals += torch.tensor(state.totals, dtype=torch.float64, device=totals.device)
        self._recorder.load_state(state.recorder)
        self._loader.load_state_dict(state.position)

    def _restore_threads(self, before: int | None) -> None:
        """Keep the number of CPU threads that a reproducible run started with: sums in a convolution depend on it."""
        if not self._recipe.reproducible or before in (None, torch.get_num_threads()):
            return
        if self._writer is not None:
            print_line(
                f"{self._recipe.name}: keeping {before} CPU threads a worker, as at its start, instead of "
                f"{torch.get_num_threads()} (workers.cpus), because another number would give different weights"
            )
        set_cpu_threads(before)
