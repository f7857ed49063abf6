"""Exact evaluation: every sample of a split once, over all ranks, no padding counted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from stoker.dataset import Batch, SampleReader
from stoker.dataset.decode import evaluation_image
from stoker.recipe import Recipe
from stoker.storage import locate
from stoker.training.records import Metrics, ParitySample

__all__ = ["Evaluated", "Normalize", "evaluate", "parity_samples"]


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
    """``confusion``: int64 [classes, classes], rows are labels, columns are predictions."""

    metrics: Metrics
    confusion: Tensor


@torch.inference_mode()
def evaluate(model: nn.Module, normalize: Normalize, batches: Iterable[Batch], classes: int) -> Evaluated:
    """Metrics of ``model`` over this rank's ``batches`` and, in a process group, those of all other ranks.

    The model is put in evaluation mode and back. All ranks must call it.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    confusion = torch.zeros(classes * classes, dtype=torch.int64, device=device)
    for batch in batches:
        real = batch.labels >= 0
        if not real.any():
            continue
        labels = batch.labels[real].to(device, non_blocking=True)
        logits = model(normalize(batch.images[real].to(device, non_blocking=True))).float()
        ranked = logits.topk(min(5, classes), dim=1).indices
        sums[0] += functional.cross_entropy(logits, labels, reduction="sum").double()
        sums[1] += (ranked == labels[:, None]).any(dim=1).sum()
        sums[2] += len(labels)
        confusion += torch.bincount(labels * classes + ranked[:, 0], minlength=classes * classes)
    model.train(was_training)
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(sums)
        dist.all_reduce(confusion)
    square = confusion.view(classes, classes).cpu()
    loss, top5, samples = sums.tolist()
    correct = int(square.diagonal().sum())
    count = max(1.0, samples)
    metrics = Metrics(samples=int(samples), loss=loss / count, accuracy=correct / count, top5=top5 / count)
    return Evaluated(metrics, square)


@torch.inference_mode()
def parity_samples(model: nn.Module, normalize: Normalize, recipe: Recipe, most: int = 32) -> tuple[ParitySample, ...]:
    """What ``model`` says of up to ``most`` validation samples, evenly spaced over the split, each on its own."""
    reader = SampleReader(locate(recipe.data.url, patience_s=recipe.patience_s), recipe.data.validation_split)
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
