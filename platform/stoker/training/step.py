"""One optimiser step over a global batch: DistributedDataParallel over micro-batches.

What a micro-batch computes depends on its samples, its key and the weights alone. Each rank sums the gradients of its
micro-batches (``no_sync`` for all but the last), the ranks' sums are added, and the total is the gradient of the mean
loss over the global batch's samples, at any world size.
"""

import contextlib
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from stoker.dataset import Batch
from stoker.dataset.order import key_of
from stoker.recipe import Recipe
from stoker.training.ema import MovingAverage
from stoker.training.evaluation import Normalize
from stoker.training.goodput import RanksWait
from stoker.training.normalization import RunningStatistics
from stoker.training.optimizers import build_optimizer
from stoker.training.schedule import learning_rate_ratio

__all__ = ["Stepper"]


class Stepper:
    """Holds what a step changes: model, optimiser, moving average, running statistics, and the step's sums.

    ``totals`` is float64 [3] on the device: loss, correct predictions and samples of this rank's micro-batches since
    it was last zeroed. Reading it is the only time that the host waits for the device.
    """

    def __init__(self, recipe: Recipe, model: nn.Module, device: torch.device, steps_per_epoch: int) -> None:
        self._recipe, self._device, self._steps_per_epoch = recipe, device, steps_per_epoch
        layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
        self.model = model.to(device).to(memory_format=layout)
        self._statistics = RunningStatistics(self.model)
        self.average = MovingAverage(self.model, recipe.ema.decay) if recipe.ema else None
        self.optimizer = build_optimizer(self.model, recipe.optimizer)
        self.normalize = Normalize(recipe.data.mean, recipe.data.std).to(device)
        compiled = torch.compile(self.model) if recipe.compile else self.model
        self._parallel = DistributedDataParallel(
            compiled,
            device_ids=[device] if device.type == "cuda" else None,
            forward_sync_buffers=False,
            gradient_as_bucket_view=True,
        )
        self.ranks_wait = RanksWait()
        self._parallel.register_comm_hook(self.ranks_wait, _sum_of_ranks)
        self.totals = torch.zeros(3, dtype=torch.float64, device=device)

    @property
    def evaluated_model(self) -> nn.Module:
        """The model that is evaluated and published: the moving average where the recipe has one."""
        return self.average.model if self.average else self.model

    def run(self, batches: Sequence[Batch], step: int, samples: int) -> float:
        """Do ``step`` (from 0 over the whole run) with this rank's micro-batches.

        ``samples`` is how many samples the global batch really has. Returns the learning rate.
        """
        rate = self._recipe.optimizer.lr * learning_rate_ratio(self._recipe.schedule, step, self._steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=False)
        self._statistics.begin_step()
        counted = [batch for batch in batches if batch.size]
        for i, batch in enumerate(counted or batches[:1]):
            is_last = i == max(len(counted), 1) - 1
            with contextlib.nullcontext() if is_last else self._parallel.no_sync():
                self._micro_batch(batch, samples)
        with self.ranks_wait.around():
            self.ranks_wait.begun()
            self._statistics.end_step(-(-samples // self._recipe.batch.micro))
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.model, step)
        return rate

    def _micro_batch(self, batch: Batch, samples: int) -> None:
        torch.manual_seed(key_of("micro-batch", self._recipe.seed, batch.epoch, batch.step, batch.micro_batch))
        size = batch.size
        images = batch.images[: size or 1].to(self._device, non_blocking=True)
        labels = batch.labels[: size or 1].to(self._device, non_blocking=True)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._recipe.precision == "bfloat16"):
            logits: Tensor = self._parallel(self.normalize(images))
        if not size:  # this rank has no sample in the epoch's last step, but the others wait for its part of the sum
            with self.ranks_wait.around():
                torch.autograd.backward(logits.float().sum() * 0.0)
            return
        smoothing = self._recipe.loss.label_smoothing
        loss = functional.cross_entropy(logits.float(), labels, reduction="sum", label_smoothing=smoothing)
        with self.ranks_wait.around():
            torch.autograd.backward(loss / samples)
        self._statistics.add_micro_batch()
        with torch.no_grad():
            correct = (logits.argmax(dim=1) == labels).sum()
            self.totals += torch.stack((loss.double(), correct.double(), self.totals.new_tensor(float(size))))


def _sum_of_ranks(ranks_wait: RanksWait, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    ranks_wait.begun()
    work = dist.all_reduce(bucket.buffer(), op=dist.ReduceOp.SUM, async_op=True)
    return work.get_future().then(lambda done: done.value()[0])
