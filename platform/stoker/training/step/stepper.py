"""One optimiser step over a global batch: DistributedDataParallel over micro-batches.

What a micro-batch computes depends on its samples, its key and the weights alone. Each rank sums the gradients of its
micro-batches (``no_sync`` for all but the last), the ranks' sums are added, and the total is the gradient of the mean
loss over the global batch's samples, at any world size. With ``reproducible`` the sums are exact, so the weights are
the same bits at any world size (``exact_sums``).

The host reads nothing from the device in a step, with one exception: with ``reproducible`` it reads, once, how large
the gradients were, after the last backward pass and before anything has changed. Reading it a step later instead would
need a copy of weights, optimiser state and average at each step, which costs more than the pause that it saves: what
waits on a GPU for that number is the launch of the optimiser's few kernels. (float16 reads its loss scale too.)
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stoker.dataset import Batch
from stoker.dataset.order import key_of
from stoker.models import auxiliary_weight, classes_of, logits_of, no_loss, training_loss
from stoker.models.normalize import Normalize
from stoker.models.precision import autocast
from stoker.recipe import Recipe
from stoker.training.augment.augmentation import Augmentation
from stoker.training.optim.clipping import clip_gradients
from stoker.training.optim.ema import MovingAverage
from stoker.training.optim.optimizers import build_optimizer, set_learning_rate
from stoker.training.optim.schedule import learning_rate_ratio
from stoker.training.step.batch_norm import RunningStatistics
from stoker.training.step.communication import CommunicationTimer
from stoker.training.step.exact_sums import Exactness, ExactSums
from stoker.training.step.numerics import configure_numerics
from stoker.training.step.parallel import data_parallel
from stoker.training.step.prefetch import OnDevice, Prefetcher

__all__ = ["StepDone", "Stepper"]

_LEAST_SCALE = 2.0**-126  # a loss that is never finite halves the scale down to 0, until the run notices it
_LOSS_UNIT = 2.0**-20  # losses are summed in whole multiples of it, so in float64 their sum has no order below 2^33


@dataclass(frozen=True)
class StepDone:
    """Outcome of a step: ``rate`` is its learning rate, ``exactness`` what exact sums have cost; None without them."""

    rate: float
    exactness: Exactness | None = None

    def as_dict(self) -> dict[str, float]:
        """Numbers by name, for the run's files and metrics."""
        if self.exactness is None:
            return {}
        return {
            "exact_bits_kept": self.exactness.bits_kept,
            "exact_bits_kept_median": self.exactness.bits_kept_median,
            "exact_steps_redone": self.exactness.steps_redone,
        }


class Stepper:
    """The state that a step changes: model, optimiser, moving average, running statistics, and the step's sums.

    ``totals`` is float64 [3] on the device: loss, correct predictions and samples of this rank's micro-batches since
    it was last zeroed. Reading it waits for the device. Making one sets the
    numerics of the process (``numerics``).

    ``class_weights`` (float32 [classes]) are those of ``loss.class_weights`` (``.class_weights``).

    Raises:
        ValueError: ``class_weights`` are given and the recipe has none, or the other way round.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: nn.Module,
        device: torch.device,
        steps_per_epoch: int,
        *,
        class_weights: Tensor | None = None,
    ) -> None:
        if (class_weights is None) != (recipe.loss.class_weights == "none"):
            count = "none" if class_weights is None else "some"
            raise ValueError(f"loss.class_weights is {recipe.loss.class_weights}, but {count} were given to the step")
        configure_numerics(recipe)
        if recipe.sync_batch_norm:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        self._recipe, self._device, self._steps_per_epoch = recipe, device, steps_per_epoch
        layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
        self.model = model.to(device).to(memory_format=layout)
        self._statistics = RunningStatistics(self.model, exact=recipe.reproducible)
        self.average = MovingAverage(self.model, recipe.ema.decay) if recipe.ema else None
        self._augmentation = Augmentation(recipe, classes_of(model))
        given = recipe.loss.auxiliary_weight
        self._auxiliary_weight = auxiliary_weight(recipe.model.name) if given is None else given
        self._class_weights = None if class_weights is None else class_weights.to(device)
        self.optimizer = build_optimizer(self.model, recipe.optimizer)
        self.normalize = Normalize(recipe.data.mean, recipe.data.std).to(device)
        self._trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self._exact = ExactSums(self._trained, recipe.batch.micro_batches) if recipe.reproducible else None
        self._scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "float16")
        self.communication_timer = CommunicationTimer.on(device)
        self._prefetcher = Prefetcher(device)
        self._parallel = data_parallel(self.model, recipe, device, self._exact, self.communication_timer)
        self.totals = torch.zeros(3, dtype=torch.float64, device=device)
        self._sums = torch.zeros_like(self.totals)

    @property
    def evaluated_model(self) -> nn.Module:
        """The model that is evaluated and published: the moving average where the recipe has one."""
        return self.average.model if self.average else self.model

    def run(self, batches: Sequence[Batch], step: int, samples: int) -> StepDone:
        """Run ``step`` (from 0 over the whole run) on this rank's micro-batches.

        ``samples`` is the number of samples in the global batch, padding not counted.
        """
        rate = self._recipe.optimizer.lr * learning_rate_ratio(self._recipe.schedule, step, self._steps_per_epoch)
        set_learning_rate(self.optimizer, rate)
        self._statistics.begin_step()
        self._backward(batches, samples)
        exponents = None
        if self._exact is not None:
            fits, exponents = self._reduce_exponents(self._exact, step)
            if not fits:  # nothing has changed yet, and every draw is keyed: repeat the step on a coarser grid
                self._statistics.begin_again()
                self._backward(batches, samples)
                _, exponents = self._reduce_exponents(self._exact, step)
        with self.communication_timer.measure():
            self.communication_timer.start()
            self._statistics.end_step(-(-samples // self._recipe.batch.micro), exponents)
        self._change_weights()
        self.totals += self._sums
        if self.average is not None:
            self.average.update(self.model, step)
        return StepDone(rate, self._exact.exactness if self._exact else None)

    def state_tensors(self) -> dict[str, Tensor]:
        """CPU tensors that a resumed run needs, besides model, optimiser and average, to keep the same bits."""
        state = {f"exact_sums/{name}": value for name, value in (self._exact.state() if self._exact else {}).items()}
        for name, value in self._scaler.state_dict().items():
            state[f"loss_scale/{name}"] = torch.tensor(float(value), dtype=torch.float64)
        return state

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restore what :meth:`state_tensors` returned."""
        parts: dict[str, dict[str, Tensor]] = {"exact_sums": {}, "loss_scale": {}}
        for name, value in tensors.items():
            part, _, key = name.partition("/")
            parts[part][key] = value
        if self._exact and parts["exact_sums"]:
            self._exact.load_state(parts["exact_sums"])
        if self._scaler.is_enabled() and (found := parts["loss_scale"]):
            scale = {key: value.item() for key, value in found.items()}
            whole = {key: int(scale[key]) for key in ("growth_interval", "_growth_tracker")}
            self._scaler.load_state_dict(scale | whole)

    def _reduce_exponents(self, exact: ExactSums, step: int) -> tuple[bool, Tensor]:
        """Whether the step's sums are exact, and the exponents of the batch-norm statistics; waits for the device."""
        gradients = exact.exponents()
        together = torch.cat([gradients, self._statistics.exponents()])
        with self.communication_timer.measure():
            self.communication_timer.start()
            dist.all_reduce(together, op=dist.ReduceOp.MAX)
        return exact.fits(together[: len(gradients)].tolist(), step), together[len(gradients) :]

    def _backward(self, batches: Sequence[Batch], samples: int) -> None:
        """Compute the global batch's gradient into all parameters' ``grad``, and its totals into ``_sums``."""
        if self._exact is not None:
            scale = self._scaler.get_scale() if self._scaler.is_enabled() else 1.0
            self._exact.begin(int(math.log2(max(scale, _LEAST_SCALE))))
        else:
            self.optimizer.zero_grad(set_to_none=False)
        self._sums.zero_()
        counted = [batch for batch in batches if batch.size] or batches[:1]
        for i, micro_batch in enumerate(self._prefetcher.on_device(counted)):
            is_last = i == len(counted) - 1
            with contextlib.nullcontext() if is_last else self._parallel.no_sync():
                self._micro_batch(micro_batch, samples)
            if self._exact is not None and not is_last:
                self._exact.absorb()

    def _micro_batch(self, micro_batch: OnDevice, samples: int) -> None:
        batch, size, images, labels = micro_batch
        torch.manual_seed(key_of("micro-batch", self._recipe.seed, batch.epoch, batch.step, batch.micro_batch))
        with autocast(self._device, self._recipe.precision):
            normalized = self.normalize(self._augmentation.pixels(images, batch))
            mixed, targets = self._augmentation.mix(normalized, labels, batch)
            outputs = self._parallel(mixed)
        if not size:  # this rank has no sample in the epoch's last step, but the others wait for its all-reduce
            with self.communication_timer.measure():
                torch.autograd.backward(no_loss(outputs))
            return
        loss = training_loss(
            outputs,
            targets,
            label_smoothing=self._recipe.loss.label_smoothing,
            auxiliary_weight=self._auxiliary_weight,
            class_weights=self._class_weights,
        )
        with self.communication_timer.measure():
            torch.autograd.backward(self._scaler.scale(loss / samples))
        self._statistics.add_micro_batch()
        with torch.no_grad():
            correct = (logits_of(outputs).argmax(dim=1) == labels).sum()
            counted = torch.full_like(self.totals[0], float(size))
            summed = (loss.double() / _LOSS_UNIT).round() * _LOSS_UNIT
            self._sums += torch.stack((summed, correct.double(), counted))

    def _change_weights(self) -> None:
        if self._scaler.is_enabled():
            self._scaler.unscale_(self.optimizer)
        if limit := self._recipe.gradient_clip:
            gradients = [p.grad for p in self._trained if p.grad is not None]
            clip_gradients(gradients, limit, in_fixed_order=self._recipe.reproducible)
        self._scaler.step(self.optimizer)
        self._scaler.update()
