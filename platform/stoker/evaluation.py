"""Exact evaluation of a model: each sample of a split counted once over all ranks, without padding."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stoker.dataset import Batch, SampleReader
from stoker.dataset.decode import evaluation_image
from stoker.models.normalize import Normalize
from stoker.models.precision import autocast, full_float32
from stoker.recipe import Recipe
from stoker.runs.records import Metrics, Mistake, ParitySample
from stoker.storage import locate

__all__ = ["EvaluationResult", "evaluate", "macro_accuracy", "parity_samples"]

_MISTAKES = 24
_GRID = 2.0**24
"""grid units of a loss in one nat: sums stay below 2**63 for 10**9 samples of 500 nats"""
_MOST_LOSS = 2.0**20


@dataclass(frozen=True)
class EvaluationResult:
    """Metrics of a model over a whole split, and where it is wrong.

    ``confusion``: int64 [classes, classes], rows are labels, columns are predictions.
    ``top5_by_class``: int64 [classes], samples of each label that have it among their five most probable classes.
    ``mistakes``: the misclassified samples with the highest loss, in descending order.
    """

    metrics: Metrics
    confusion: Tensor
    top5_by_class: Tensor
    mistakes: tuple[Mistake, ...]


@torch.inference_mode()
@full_float32()
def evaluate(
    model: nn.Module, normalize: Normalize, batches: Iterable[Batch], classes: int, *, precision: str = "float32"
) -> EvaluationResult:
    """Evaluate ``model`` on this rank's ``batches`` and reduce over all ranks of the process group, if there is one.

    All ranks must call it. The model is set to evaluation mode and restored afterwards. All sums are of integers,
    losses included (float64, rounded to multiples of 2**-24), so the result does not depend on the order of samples
    or the number of ranks: equal micro-batches give equal metrics, bit for bit, on the same kind of processor.

    ``precision`` is a recipe's: float32, bfloat16 or float16. What is computed in float32 is so in full, without TF32.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    sums = _Sums(classes, device)
    for batch in batches:
        images, labels, numbers = (_copied(tensor, device) for tensor in _without_padding(batch))
        if not len(numbers):
            continue
        with autocast(device, precision):
            logits = model(normalize(images))
        sums.add(logits.float(), labels, numbers)
    model.train(was_training)
    if dist.is_initialized() and dist.get_world_size() > 1:
        sums.add_other_ranks()
    return sums.result()


def _without_padding(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Images, labels and numbers of the samples of ``batch``: views of its start, unless padding is between them."""
    real = batch.labels >= 0
    count = int(real.sum())
    kept = slice(count) if bool(real[:count].all()) else real
    return batch.images[kept], batch.labels[kept], batch.numbers[kept]


def _copied(tensor: Tensor, device: torch.device) -> Tensor:
    """``tensor`` on ``device``; the host does not wait for a copy to a GPU, which only pinned memory allows."""
    if device.type == "cuda" and not tensor.is_cuda:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class _Sums:
    """Running sums of an evaluation, on ``device``; nothing synchronizes with the device before :meth:`result`."""

    def __init__(self, classes: int, device: torch.device) -> None:
        self._classes = classes
        self._confusion = torch.zeros(classes * classes, dtype=torch.int64, device=device)
        self._top5 = torch.zeros(classes, dtype=torch.int64, device=device)
        self._loss = torch.zeros(2, dtype=torch.int64, device=device)  # in grid units; samples whose loss is not finite
        self._worst = torch.full((_MISTAKES, 5), -1.0, dtype=torch.float64, device=device)

    def add(self, logits: Tensor, labels: Tensor, numbers: Tensor) -> None:
        """``logits``: float32 [n, classes]; ``labels`` and ``numbers``: int64 [n]; all on the device."""
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
        columns = (torch.where(predicted == labels, -1.0, losses), numbers, labels, predicted)
        rows = torch.stack([*(column.double() for column in columns), probabilities], dim=1)
        self._keep_worst(torch.cat((self._worst, rows)))

    def add_other_ranks(self) -> None:
        for counts in (self._confusion, self._top5, self._loss):
            dist.all_reduce(counts)
        gathered = [torch.empty_like(self._worst) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, self._worst)
        self._keep_worst(torch.cat(gathered))

    def result(self) -> EvaluationResult:
        square = self._confusion.view(self._classes, self._classes).cpu()
        samples, correct, top5 = int(square.sum()), int(square.diagonal().sum()), int(self._top5.sum())
        units, not_finite = (int(n) for n in self._loss.tolist())
        count = max(1, samples)
        metrics = Metrics(
            samples=samples,
            loss=math.nan if not_finite else units / _GRID / count,
            accuracy=correct / count,
            top5=top5 / count,
            macro_accuracy=macro_accuracy(square),
        )
        mistakes = [
            Mistake(number=int(row[1]), label=int(row[2]), predicted=int(row[3]), probability=row[4], loss=row[0])
            for row in self._worst.tolist()
            if row[0] >= 0
        ]
        return EvaluationResult(metrics, square, self._top5.cpu(), tuple(mistakes))

    def _keep_worst(self, rows: Tensor) -> None:
        """Sort by loss, then by sample number, so that the order of arrival does not matter."""
        rows = rows[rows[:, 1].argsort(stable=True)]
        self._worst = rows[rows[:, 0].argsort(stable=True, descending=True)][:_MISTAKES]


def macro_accuracy(confusion: Tensor) -> float:
    """Mean over the classes of the fraction of their samples that are predicted as theirs, 0 to 1.

    ``confusion``: int64 [classes, classes], rows are labels. Classes without samples are left out; 0 if there is none
    with any. Each fraction is rounded once to float64, and so is their sum (``math.fsum``), which thus has no order.
    Also called balanced accuracy (Brodersen and others, The Balanced Accuracy and Its Posterior Distribution, ICPR
    2010) or macro recall.
    """
    counts = zip(confusion.diagonal().tolist(), confusion.sum(dim=1).tolist(), strict=True)
    fractions = [correct / samples for correct, samples in counts if samples]
    return math.fsum(fractions) / max(1, len(fractions))


@torch.inference_mode()
@full_float32()
def parity_samples(model: nn.Module, normalize: Normalize, recipe: Recipe, most: int = 32) -> tuple[ParitySample, ...]:
    """Probabilities of up to ``most`` validation samples, evenly spaced over the split, each predicted alone.

    They are stored with the run, so that a published version can be compared with them: in float32 as it will predict,
    whatever the recipe's precision.
    """
    reader = SampleReader(locate(recipe.data.url, timeout_s=recipe.storage_timeout_s), recipe.data.validation_split)
    numbers = sorted({i * len(reader) // most for i in range(most)})
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    samples = []
    for sample in reader.read(numbers):
        image = evaluation_image(
            sample.data, image_size=recipe.evaluation_image_size, resize=recipe.evaluation_resize
        ).to(device)
        probabilities = model(normalize(image[None])).float().softmax(dim=1)[0].tolist()
        samples.append(
            ParitySample(number=sample.number, key=sample.key, label=sample.label, probabilities=probabilities)
        )
    model.train(was_training)
    return tuple(samples)
