"""The only module of the benchmark that imports stoker's step, loader and checkpoints, whose names may change."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torchvision.io import ImageReadMode, decode_jpeg

from stoker.dataset import Batch, Loader
from stoker.dataset.decode import TrainingImagesOnGpu
from stoker.dataset.order import micro_batches_of
from stoker.models import build_model
from stoker.recipe import Recipe
from stoker.runs.checkpoint_writer import CheckpointWriter
from stoker.runs.checkpoints import list_checkpoints
from stoker.storage import locate
from stoker.training.optim.optimizers import optimizer_tensors
from stoker.training.step.stepper import Stepper

__all__ = ["CLASSES", "Checkpoints", "OurLoop", "compile_quickly", "loaded", "make_model", "recipe_for", "synthetic"]

CLASSES = 1000
_STEPS_PER_EPOCH = 10_000


def recipe_for(
    *,
    model: str,
    side: int,
    micro: int,
    micro_batches: int,
    world_size: int,
    data: dict[str, Any] | None = None,
    **changed: Any,
) -> Recipe:
    """A recipe of ``micro_batches`` micro-batches a rank of ``micro`` images; ``data`` and ``changed`` add to it."""
    fields = {
        "name": "bench",
        "storage": "/unused",
        "data": {"url": "", "image_size": side, **(data or {})},
        "model": {"name": model},
        "batch": {"total": micro * micro_batches * world_size, "micro": micro},
        "optimizer": {"lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4, "decay_norm_and_bias": True},
        "schedule": {"epochs": 1},
        "workers": {"min": 1, "max": world_size, "gpus": 0, "cpus": 1},
    }
    return Recipe.model_validate(fields | changed)


def make_model(recipe: Recipe, classes: int = CLASSES) -> torch.nn.Module:
    """The recipe's model, with the same weights each time."""
    torch.manual_seed(0)
    return build_model(recipe.model.name, classes=classes)


def synthetic(recipe: Recipe, rank: int, world_size: int) -> list[Batch]:
    """This rank's micro-batches of one step, random pixels as the loader lays them out."""
    side, micro = recipe.data.image_size, recipe.batch.micro
    made = []
    for number in micro_batches_of(rank, world_size, recipe.batch.micro_batches):
        generator = torch.Generator().manual_seed(number)
        pixels = torch.randint(0, 256, (micro, 3, side, side), generator=generator, dtype=torch.uint8)
        images = pixels.to(memory_format=torch.channels_last)
        labels = torch.randint(0, CLASSES, (micro,), generator=generator)
        made.append(Batch(images, labels, torch.arange(micro) + number * micro, 0, 0, number))
    return made


def compile_quickly() -> None:
    """Let torch.compile run what it traced as it is: for a toy on a CPU, whose C++ takes minutes to compile."""
    torch.compile = functools.partial(torch.compile, backend="aot_eager")


class OurLoop:
    """Stoker's step on whatever batches it is given."""

    def __init__(self, recipe: Recipe, device: torch.device, classes: int = CLASSES) -> None:
        self._recipe = recipe
        self._stepper = Stepper(recipe, make_model(recipe, classes), device, _STEPS_PER_EPOCH)
        self._step = 0

    def step(self, batches: list[Batch]) -> None:
        self._stepper.run(batches, self._step, self._recipe.batch.total)
        self._step += 1

    def checkpoint_tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        """What a checkpoint of this model holds: file name to tensors."""
        stepper = self._stepper
        return {
            "model.safetensors": stepper.model.state_dict(),
            "optimizer.safetensors": optimizer_tensors(stepper.optimizer, stepper.model),
        }


def loaded(recipe: Recipe, *, as_on_gpu: bool = False) -> Iterator[list[Batch]]:
    """This rank's micro-batches of one step after the other from the recipe's data set, epoch after epoch.

    ``as_on_gpu`` decodes as for a GPU, with a CPU's decoder in place of nvJPEG, to check that the code runs.
    """
    loader = Loader.for_training(recipe, rank=dist.get_rank(), world_size=dist.get_world_size())
    if as_on_gpu:
        decoder = TrainingImagesOnGpu(
            recipe.data.image_size, recipe.data.augment, device=torch.device("cpu"), decode_batch=_decoded_by_cpu
        )
        sizes = {"global_batch": recipe.batch.total, "micro_batch": recipe.batch.micro}
        loader = Loader(recipe.data.url, recipe.data.train_split, data=recipe.data, decoder=decoder, **sizes)
    together: list[Batch] = []
    while True:
        for batch in loader:
            together.append(batch)
            if len(together) == len(loader.micro_batches):
                yield together
                together = []


def _decoded_by_cpu(encoded: list[torch.Tensor], _: torch.device) -> list[torch.Tensor]:
    return [decode_jpeg(one, ImageReadMode.RGB) for one in encoded]


class Checkpoints:
    """Checkpoints of a loop, written in the background as in a run."""

    def __init__(self, url: str) -> None:
        self._folder = locate(url, timeout_s=60)
        self._writer = CheckpointWriter(self._folder, keep=2)
        self._last = 0

    def save(self, step: int, loop: OurLoop) -> None:
        """Save a checkpoint; returns as soon as the loop may continue."""
        self._last = step
        self._writer.save(step, loop.checkpoint_tensors(), {"step": step})

    @property
    def is_committed(self) -> bool:
        """Whether the last checkpoint is visible to readers."""
        return self._last in list_checkpoints(self._folder)

    def close(self) -> None:
        """Wait for checkpoints in progress, and delete what was written."""
        self._writer.close()
        self._folder.delete()
