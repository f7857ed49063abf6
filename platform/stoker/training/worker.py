"""What each rank of a run does: restore, stream, step, checkpoint, evaluate, and at the end report."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import ray.train
import ray.train.torch
import torch
import torch.distributed as dist

from stoker.command import quiet_libraries
from stoker.dataset import Batch, Loader
from stoker.errors import RunError
from stoker.evaluation import EvaluationResult, evaluate, parity_samples
from stoker.models.initialize import load_initial_weights, training_model
from stoker.recipe import Recipe
from stoker.runs.checkpoint_writer import CheckpointWriter
from stoker.runs.checkpoints import EMA, MODEL, OPTIMIZER, Checkpoint, open_checkpoint
from stoker.runs.folder import RunFolder
from stoker.storage import locate
from stoker.training.fault_tolerance.failure_policy import why_started_again
from stoker.training.fault_tolerance.guard import Ended, Guard
from stoker.training.optim.optimizers import load_optimizer_tensors, optimizer_tensors
from stoker.training.report.result import close_run, versions
from stoker.training.step.stepper import STEPPER, StepDone, Stepper
from stoker.training.telemetry.recorder import Recorder, say
from stoker.training.telemetry.trace import Trace

__all__ = ["train_worker"]


def train_worker(config: dict[str, Any]) -> None:
    """The function that Ray Train calls on every rank.

    ``config`` is ``{"recipe": …, "fingerprint": …, "lease": the token of the driver's lease, "account": where
    ``supervision`` says why it started these workers again, "why": what the driver knows of that}``.
    """
    quiet_libraries()
    recipe = Recipe.model_validate(config["recipe"])
    torch.set_num_threads(max(1, recipe.workers.cpus if not recipe.workers.gpus else 1))
    device = ray.train.torch.get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    run = RunFolder(locate(recipe.storage, timeout_s=recipe.storage_timeout_s), recipe.name)
    with Guard(recipe, run, config["lease"], device) as guard:
        why = why_started_again(config["account"]) or config["why"]
        Worker(recipe, config["fingerprint"], device, run, guard).run(why)


class Worker:
    """One rank of a run, from its beginning or its last checkpoint to the end."""

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
        self._stepper = Stepper(recipe, model, device, self._loader.steps)
        kept = recipe.checkpoint
        self._writer = (
            CheckpointWriter(run.checkpoints, kept.keep, keeps_best=kept.keep_best, may_commit=guard.may_commit)
            if self._is_first
            else None
        )
        self._best = -1.0
        self._step = 0
        self._recorder = Recorder(recipe, run, self._loader, device)
        self._trace = Trace(recipe.trace_dir, self._rank, self._world_size) if recipe.trace_dir else None

    @property
    def _is_first(self) -> bool:
        return self._rank == 0

    def run(self, why: Mapping[str, Any] = MappingProxyType({})) -> None:
        """Train to the recipe's last epoch and store the result; ``why`` tells of the failure that came before."""
        try:
            self._restore()
            self._recorder.begin(self._step, why)
            evaluated = self._run_epochs() or self._evaluate()  # or: the last checkpoint is there, the result is not
            if self._writer is not None:
                self._writer.close()
                self._finish(evaluated)
        except Ended:
            if self._writer is not None:
                self._writer.close()
            dist.barrier()
            raise
        finally:
            self._recorder.close()
        dist.barrier()

    def _run_epochs(self) -> EvaluationResult | None:
        epochs, evaluated = self._recipe.schedule.epochs, None
        for epoch in range(self._step // self._loader.steps, epochs):
            evaluated = self._epoch(epoch)
            accuracy = evaluated.metrics.accuracy if evaluated else None
            agreed = self._guard.after_step(self._step)
            is_best = accuracy is not None and self._improves(accuracy)
            if agreed.saves or is_best or self._is_due or epoch + 1 == epochs:
                self._save(accuracy)
            self._guard.obey(agreed)
        return evaluated

    @property
    def _is_due(self) -> bool:
        return self._step % self._recipe.checkpoint.every_steps == 0

    def _improves(self, accuracy: float) -> bool:
        """Whether ``accuracy`` is the run's best so far, of those that a checkpoint is kept for."""
        is_best = self._recipe.checkpoint.keep_best and accuracy > self._best
        self._best = max(self._best, accuracy)
        return is_best

    def _epoch(self, epoch: int) -> EvaluationResult | None:
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
        is_left_out = self._guard.skips(self._step)
        done = StepDone(0.0) if is_left_out else self._stepper.run(batches, self._step, samples)
        self._recorder.clock.add("communication", self._stepper.communication_timer.take())
        self._guard.note_loss(self._stepper.totals[0], self._step)
        self._step += 1
        if self._trace:
            self._trace.write(batches)
        self._recorder.stepped(self._step, done.rate, self._read_totals, done.as_dict())
        if self._step % self._loader.steps:  # an epoch's last step is followed by its evaluation
            agreed = self._guard.after_step(self._step)
            if agreed.saves or self._is_due:
                self._save()
            self._guard.obey(agreed)
        return done.rate

    def _read_totals(self) -> Sequence[float]:
        """This rank's loss, correct predictions and samples of the epoch so far, from the device."""
        totals = [float(value) for value in self._stepper.totals.tolist()]
        self._guard.see_loss(totals[0])
        return totals

    def _totals_of_all_ranks(self) -> list[float]:
        """Loss, correct predictions and samples of the epoch so far."""
        totals = self._stepper.totals.clone()
        dist.all_reduce(totals)
        return [float(value) for value in totals.tolist()]

    def _close_epoch(self, epoch: int, rate: float) -> EvaluationResult | None:
        totals = self._totals_of_all_ranks()
        is_last = epoch + 1 == self._recipe.schedule.epochs
        is_due = is_last or (epoch + 1) % self._recipe.evaluation.every_epochs == 0
        evaluated = self._evaluate() if is_due else None
        self._recorder.close_epoch(epoch, self._step, rate, totals, evaluated)
        return evaluated

    def _evaluate(self) -> EvaluationResult:
        model, normalize = self._stepper.evaluated_model, self._stepper.normalize
        with self._recorder.clock.spent("evaluation"):
            return evaluate(model, normalize, self._guard.beating(self._validation), len(self._classes))

    def _save(self, accuracy: float | None = None) -> None:
        """Store a checkpoint, unless the loss is no number any more; all ranks must call it."""
        self._guard.must_be_finite(self._loader.order)
        totals = self._totals_of_all_ranks()  # on a GPU this waits for the steps under way: compute, no checkpoint
        if self._writer is not None:
            with self._recorder.clock.spent("checkpoint"):
                self._save_with(self._writer, totals, accuracy)

    def _save_with(self, writer: CheckpointWriter, totals: list[float], accuracy: float | None) -> None:
        stepper = self._stepper
        tensors = {MODEL: stepper.model.state_dict(), OPTIMIZER: optimizer_tensors(stepper.optimizer, stepper.model)}
        if held := stepper.state_tensors():
            tensors[STEPPER] = held
        if stepper.average:
            tensors[EMA] = stepper.average.model.state_dict()
        epoch, within = divmod(self._step, self._loader.steps)
        state = {
            "position": {"epoch": epoch, "step": within},
            "step": self._step,
            "totals": totals,
            "recorder": self._recorder.state(),
            "skipped_steps": list(self._guard.skipped),
            "best_accuracy": self._best,
            "recipe": self._recipe.model_dump(mode="json"),
            "dataset_fingerprint": self._fingerprint,
            "threads": torch.get_num_threads(),
            "versions": versions(),
        }
        writer.save(self._step, tensors, state, accuracy)

    def _restore(self) -> None:
        """Go on from the newest checkpoint that rank 0 sees."""
        newest = None
        if self._writer is not None:
            self._writer.clean()
            newest = self._run.latest_checkpoint()
        step = torch.tensor([newest.step if newest else -1], device=self._device)
        dist.broadcast(step, src=0)
        if (found := int(step.item())) < 0:
            average = self._stepper.average
            models = [self._stepper.model, *([average.model] if average else [])]
            load_initial_weights(self._recipe, self._classes, models)
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
        if STEPPER in checkpoint.files:
            stepper.load_state_tensors(checkpoint.tensors(STEPPER))
        if stepper.average:
            stepper.average.model.load_state_dict(checkpoint.tensors(EMA))
        self._keep_threads(state.get("threads"))
        self._step = int(state["step"])
        self._best = float(state.get("best_accuracy", -1.0))
        if self._is_first:
            stepper.totals += torch.tensor(state["totals"], dtype=torch.float64, device=self._device)
        self._recorder.load_state(state["recorder"])
        self._loader.load_state_dict(state["position"])

    def _keep_threads(self, before: int | None) -> None:
        """Sums inside a convolution depend on the number of CPU threads: a reproducible run keeps its first."""
        if not self._recipe.reproducible or before in (None, torch.get_num_threads()):
            return
        if self._is_first:
            say(
                f"{self._recipe.name}: goes on with {before} CPU threads a worker, as it began, not "
                f"{torch.get_num_threads()} (workers.cpus): another number would give other weights"
            )
        torch.set_num_threads(before)

    def _finish(self, evaluated: EvaluationResult) -> None:
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
