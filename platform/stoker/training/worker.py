"""The training loop of one rank: restore, stream, step, checkpoint, evaluate, and at the end report."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch import Tensor

from stoker.command import quiet_libraries
from stoker.dataset import Batch, Loader
from stoker.evaluation import EvaluationResult, evaluate, parity_samples
from stoker.models.initialize import training_model
from stoker.recipe import Recipe
from stoker.runs.folder import RunFolder
from stoker.storage import locate
from stoker.training.checkpointing import Checkpointing
from stoker.training.fault_tolerance.circumstances import annotating
from stoker.training.fault_tolerance.failure_policy import restart_reason
from stoker.training.fault_tolerance.guard import Guard, StopTraining
from stoker.training.fault_tolerance.process_group import GROUP_NUMBER
from stoker.training.numa import bind_to_device
from stoker.training.report.result import finish_run
from stoker.training.step.class_weights import balanced_weights, described, samples_by_class
from stoker.training.step.numerics import set_cpu_threads
from stoker.training.step.stepper import StepDone, Stepper
from stoker.training.telemetry.recorder import Recorder, print_line
from stoker.training.telemetry.trace import Trace

__all__ = ["train_worker"]


def train_worker(config: dict[str, Any]) -> None:
    """The function that Ray Train calls on every rank.

    ``config`` is ``{"recipe": …, "fingerprint": …, "lease": the token of the driver's lease, "controller": its
    number among that driver's, "attempt": the key under which the failure policy recorded why it restarted these
    workers, "why": what the driver knows of that}``.
    """
    with annotating():
        _train(config)


def _train(config: dict[str, Any]) -> None:
    quiet_libraries()
    recipe = Recipe.model_validate(config["recipe"])
    set_cpu_threads(1 if recipe.workers.gpus else recipe.workers.cpus)
    device = ray.train.torch.get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    bind_to_device(device, recipe.workers.cpus)
    run = RunFolder(locate(recipe.storage, timeout_s=recipe.storage_timeout_s), recipe.name)
    order = config["controller"], int(os.environ[GROUP_NUMBER])
    with Guard(recipe, run, config["lease"], device, order=order) as guard:
        why = restart_reason(config["attempt"]) or config["why"]
        Worker(recipe, config["fingerprint"], device, run, guard).run(why)


class Worker:
    """One rank of a run, from its start or its last checkpoint to its last epoch."""

    def __init__(self, recipe: Recipe, fingerprint: str, device: torch.device, run: RunFolder, guard: Guard) -> None:
        self._recipe, self._fingerprint, self._device = recipe, fingerprint, device
        self._rank, self._world_size = dist.get_rank(), dist.get_world_size()
        self._run, self._guard = run, guard
        ranks = {"rank": self._rank, "world_size": self._world_size}
        self._loader = Loader.for_training(recipe, **ranks)
        self._validation = Loader.for_evaluation(recipe, **ranks)
        self._classes = self._loader.classes
        torch.manual_seed(recipe.seed)
        model = training_model(recipe, len(self._classes))
        self._stepper = Stepper(recipe, model, device, self._loader.steps, class_weights=self._class_weights())
        self._step = 0
        self._recorder = Recorder(recipe, run, self._loader, device)
        self._checkpoints = Checkpointing(
            recipe, fingerprint, run, guard, stepper=self._stepper, loader=self._loader, recorder=self._recorder
        )
        self._trace = Trace(recipe.trace_dir, self._rank, self._world_size) if recipe.trace_dir else None

    def run(self, why: Mapping[str, Any] = MappingProxyType({})) -> None:
        """Train to the recipe's last epoch and store the result; ``why`` describes the failure before a restart."""
        try:
            self._step = self._checkpoints.restore()
            self._recorder.begin(self._step, why)
            evaluated = self._run_epochs() or self._evaluate()  # the last checkpoint may exist without a result
            self._checkpoints.close()
            if self._rank == 0:
                self._finish(evaluated)
        except StopTraining:
            self._checkpoints.close()
            dist.barrier()
            raise
        finally:
            self._recorder.close()
        dist.barrier()

    def _class_weights(self) -> Tensor | None:
        """The weights of the classes in the loss, if the recipe has them: float32 [classes]."""
        if self._recipe.loss.class_weights == "none":
            return None
        counts = self._guard.with_heartbeats(self._loader.label_counts())
        samples = samples_by_class(counts, len(self._classes), self._device)
        if self._rank == 0:
            print_line(f"{self._recipe.name}: {described(samples, self._classes)}")
        return balanced_weights(samples)

    def _run_epochs(self) -> EvaluationResult | None:
        epochs, evaluated = self._recipe.schedule.epochs, None
        for epoch in range(self._step // self._loader.steps, epochs):
            evaluated = self._epoch(epoch)
            accuracy = evaluated.metrics.accuracy if evaluated else None
            decision = self._guard.after_step(self._step)
            is_best = accuracy is not None and self._checkpoints.is_best(accuracy)
            if decision.saves or is_best or self._checkpoints.is_due(self._step) or epoch + 1 == epochs:
                self._save(accuracy)
            self._guard.act_on(decision)
        return evaluated

    def _epoch(self, epoch: int) -> EvaluationResult | None:
        rate = 0.0
        batches = iter(self._loader)
        while True:
            with self._recorder.clock.measure("data_wait"):
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
        is_skipped = self._guard.skips(self._step)
        done = StepDone(0.0) if is_skipped else self._stepper.run(batches, self._step, samples)
        self._recorder.clock.add("communication", self._stepper.communication_timer.pop_seconds())
        self._guard.note_loss(self._stepper.totals[0], self._step)
        self._step += 1
        if self._trace:
            self._trace.write(batches)
        self._recorder.record_step(self._step, done.rate, self._read_totals, done.as_dict())
        if self._step % self._loader.steps:  # an epoch's last step is followed by its evaluation
            decision = self._guard.after_step(self._step)
            if decision.saves or self._checkpoints.is_due(self._step):
                self._save()
            self._guard.act_on(decision)
        return done.rate

    def _read_totals(self) -> Sequence[float]:
        """This rank's loss, correct predictions and samples of the epoch so far, read from the device."""
        totals = [float(value) for value in self._stepper.totals.tolist()]
        self._guard.check_loss(totals[0])
        return totals

    def _totals_of_all_ranks(self) -> tuple[float, float, float]:
        """Loss, correct predictions and samples of the epoch so far; all ranks must call it."""
        totals = self._stepper.totals.clone()
        dist.all_reduce(totals)
        loss, correct, samples = (float(value) for value in totals.tolist())
        return loss, correct, samples

    def _close_epoch(self, epoch: int, rate: float) -> EvaluationResult | None:
        totals = self._totals_of_all_ranks()
        is_last = epoch + 1 == self._recipe.schedule.epochs
        is_due = is_last or (epoch + 1) % self._recipe.evaluation.every_epochs == 0
        evaluated = self._evaluate() if is_due else None
        self._recorder.record_epoch(epoch, self._step, rate, totals, evaluated)
        return evaluated

    def _evaluate(self) -> EvaluationResult:
        model, normalize = self._stepper.evaluated_model, self._stepper.normalize
        with self._recorder.clock.measure("evaluation"):
            batches, precision = self._guard.with_heartbeats(self._validation), self._recipe.precision
            return evaluate(model, normalize, batches, len(self._classes), precision=precision)

    def _save(self, accuracy: float | None = None) -> None:
        """Start to store a checkpoint, unless a loss was not finite; all ranks must call it."""
        self._guard.require_finite(self._loader.order)
        totals = self._totals_of_all_ranks()  # on a GPU this waits for the steps in flight: compute, not checkpoint
        self._checkpoints.save(self._step, totals, accuracy)

    def _finish(self, evaluated: EvaluationResult) -> None:
        self._guard.fence.check()
        parity = parity_samples(self._stepper.evaluated_model, self._stepper.normalize, self._recipe)
        finish_run(
            self._recipe,
            self._run,
            self._recorder.history,
            evaluated=evaluated,
            parity=parity,
            classes=self._classes,
            fingerprint=self._fingerprint,
            nondeterministic_operations=self._recorder.nondeterministic_operations,
        )
