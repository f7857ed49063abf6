"""Exact evaluation: every sample of a split once, over all ranks, no padding counted."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stoker.dataset import Batch, SampleReader
from stoker.dataset.decode import evaluation_image
from stoker.recipe import Recipe
from stoker.runs.records import Metrics, Mistake, ParitySample
from stoker.storage import locate

__all__ = ["Evaluated", "Normalize", "evaluate", "parity_samples"]

_MISTAKES = 24
_GRID = 2.0**24
"""units of a loss in a nat: sums stay below 2**63 for 10**9 samples of 500 nats"""
_MOST_LOSS = 2.0**20


class Normalize(nn.Module):
    """uint8 [n, 3, H, W] to float32 of mean 0 and deviation 1 by channel, on the images' device."""

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("scale", 1 / (255 * torch.tensor(std)).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("shift", (-torch.tensor(mean) / torch.tensor(std)).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return torch.addcmul(self.shift, images.float(), self.scale)


@dataclass(frozen=True)
class Evaluated:
    """``confusion``: int64 [classes, classes], rows are labels, columns are predictions.

    ``top5_by_class``: int64 [classes], samples of each label that have it among their five most probable classes.
    ``mistakes``: the samples that the model is most wrong about, the highest loss first.
    """

    metrics: Metrics
    confusion: Tensor
    top5_by_class: Tensor
    mistakes: tuple[Mistake, ...]


@torch.inference_mode()
def evaluate(model: nn.Module, normalize: Normalize, batches: Iterable[Batch], classes: int) -> Evaluated:
    """Metrics of ``model`` over this rank's ``batches`` and, in a process group, those of all other ranks.

    The model is put in evaluation mode and back. All ranks must call it. The sums are of integers, losses among them
    (float64, rounded to multiples of 2**-24), so neither the order of samples nor the number of ranks enters: equal
    micro-batches give equal metrics, bit for bit, on the same kind of processor.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    sums = _Sums(classes, device)
    for batch in batches:
        real = batch.labels >= 0
        if not real.any():
            continue
        logits = model(normalize(batch.images[real].to(device, non_blocking=True))).float()
        sums.add(logits, batch.labels[real].to(device, non_blocking=True), batch.numbers[real])
    model.train(was_training)
    if dist.is_initialized() and dist.get_world_size() > 1:
        sums.add_other_ranks()
    return sums.evaluated()


class _Sums:
    """What an evaluation counts, on ``device``; nothing waits for the device before :meth:`evaluated`."""

    def __init__(self, classes: int, device: torch.device) -> None:
        self._classes = classes
        self._confusion = torch.zeros(classes * classes, dtype=torch.int64, device=device)
        self._top5 = torch.zeros(classes, dtype=torch.int64, device=device)
        self._loss = torch.zeros(2, dtype=torch.int64, device=device)  # in grid units; samples without a finite one
        self._worst = torch.full((_MISTAKES, 5), -1.0, dtype=torch.float64, device=device)

    def add(self, logits: Tensor, labels: Tensor, numbers: Tensor) -> None:
        """``logits``: float32 [n, classes]; ``labels``: int64 [n], both on the device; ``numbers``: int64 [n]."""
        logs = logits.double().log_softmax(dim=1)
        losses = -logs.gather(1, labels[:, None])[:, 0]
        is_finite = losses.isfinite()
        units = torch.where(is_finite, losses.clamp(max=_MOST_LOSS), 0.0).mul(_GRID).round().long()
        self._loss += torch.stack((units.sum(), (~is_finite).sum()))
        ranked = logits.topk(min(5, self._classes), dim=1).indices
        predicted = ranked[:, 0]
        self._confusion.index_add_(0, labels * self._classes + predicted, torch.ones_like(labels))
        self._top5.index_add_(0, labels, (ranked == labels[:, None]).any(dim=1).long())
        probabilities = logs.gather(1, predicted[:, None])[:, 0].exp()
        told = (torch.where(predicted == labels, -1.0, losses), numbers.to(labels.device), labels, predicted)
        rows = torch.stack([*(column.double() for column in told), probabilities], dim=1)
        self._keep_worst(torch.cat((self._worst, rows)))

    def add_other_ranks(self) -> None:
        for counts in (self._confusion, self._top5, self._loss):
            dist.all_reduce(counts)
        found = [torch.empty_like(self._worst) for _ in range(dist.get_world_size())]
        dist.all_gather(found, self._worst)
        self._keep_worst(torch.cat(found))

    def evaluated(self) -> Evaluated:
        square = self._confusion.view(self._classes, self._classes).cpu()
        samples, correct, top5 = int(square.sum()), int(square.diagonal().sum()), int(self._top5.sum())
        units, broken = (int(n) for n in self._loss.tolist())
        count = max(1, samples)
        metrics = Metrics(
            samples=samples,
            loss=math.nan if broken else units / _GRID / count,
            accuracy=correct / count,
            top5=top5 / count,
        )
        mistakes = [
            Mistake(number=int(row[1]), label=int(row[2]), predicted=int(row[3]), probability=row[4], loss=row[0])
            for row in self._worst.tolist()
            if row[0] >= 0
        ]
        return Evaluated(metrics, square, self._top5.cpu(), tuple(mistakes))

    def _keep_worst(self, rows: Tensor) -> None:
        """By loss, then by number, whatever order they came in."""
        rows = rows[rows[:, 1].argsort(stable=True)]
        self._worst = rows[rows[:, 0].argsort(stable=True, descending=True)][:_MISTAKES]


@torch.inference_mode()
def parity_samples(model: nn.Module, normalize: Normalize, recipe: Recipe, most: int = 32) -> tuple[ParitySample, ...]:
    """What ``model`` says of up to ``most`` validation samples, evenly spaced over the split, each on its own."""
    reader = SampleReader(locate(recipe.data.url, timeout_s=recipe.storage_timeout_s), recipe.data.validation_split)
    numbers = sorted({i * len(reader) // most for i in range(most)})
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    found = []
    for sample in reader.read(numbers):
        image = evaluation_image(
            sample.data, image_size=recipe.evaluation_image_size, resize=recipe.evaluation_resize
        ).to(device)
        probabilities = model(normalize(image[None])).float().softmax(dim=1)[0].tolist()
        found.append(
            ParitySample(number=sample.number, key=sample.key, label=sample.label, probabilities=probabilities)
        )
    model.train(was_training)
    return tuple(found)
