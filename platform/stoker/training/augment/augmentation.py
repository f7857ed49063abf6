"""Augment a micro-batch on the device before the model sees it. Every draw is keyed; none depends on rank or time.

    uint8 ─ pixels: RandAugment or TrivialAugment ─▶ normalised to float ─ mix: erasing, then mixup or cutmix ─▶ model
            keyed by (seed, epoch, sample)                            by sample          by micro-batch

RandAugment: Cubuk and others (CVPR Workshops 2020). TrivialAugment, the wide space: Müller and Hutter (ICCV 2021).
Ranges are those of torchvision's classes of these names. The parameters are drawn on the host, which does not wait for
the device. What an operation does is in ``operations``, erasing and mixing in ``mixing``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from stoker.dataset import Batch
from stoker.dataset.order import key_of, uniform
from stoker.recipe import Recipe
from stoker.training.augment.mixing import Mix, choose_mix, erase, erased_boxes, mix_batch
from stoker.training.augment.operations import OPERATIONS, POLICIES, apply_operations

__all__ = ["Augmentation"]

_BINS = 31
"""strengths of an operation, from none to the end of its range"""


class Augmentation:
    """Applies the recipe's ``augmentation`` section; ``classes`` is the number of outputs of the model."""

    def __init__(self, recipe: Recipe, classes: int) -> None:
        self._chosen, self._seed, self._classes = recipe.augmentation, recipe.seed, classes
        places = {operation.name: place for place, operation in enumerate(OPERATIONS)}
        self._choices = np.array([places[name] for name in POLICIES.get(recipe.augmentation.policy, ())])

    def pixels(self, images: Tensor, batch: Batch) -> Tensor:
        """Augment ``images``, the first n of ``batch`` on the device: uint8 [n, 3, H, W] to the same kind."""
        if self._chosen.policy == "none":
            return images
        is_wide = self._chosen.policy == "trivial_augment_wide"
        rounds = 1 if is_wide else self._chosen.operations
        draws = uniform(key_of("operations", self._seed, batch.epoch), self._numbers(images, batch), 3 * rounds)
        height, width = images.shape[-2:]
        for of_round in np.split(draws, rounds, axis=1):
            kinds = self._choices[(of_round[:, 0] * len(self._choices)).astype(np.int64)]
            bins = (of_round[:, 1] * _BINS).astype(np.int64) if is_wide else np.full(len(kinds), self._chosen.magnitude)
            strengths = [
                OPERATIONS[kind].strength(bin_ / (_BINS - 1), height, width, is_wide) * _sign(kind, draw)
                for kind, bin_, draw in zip(kinds.tolist(), bins.tolist(), of_round[:, 2].tolist(), strict=True)
            ]
            images = apply_operations(images, kinds, np.array(strengths))
        return images

    def mix(self, images: Tensor, labels: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Erase and mix: normalised images (float [n, 3, H, W]) and labels (int64 [n]) to images and targets.

        Targets are the labels, or where samples are mixed float32 [n, classes] whose rows sum to 1.
        """
        height, width = images.shape[-2:]
        if self._chosen.erase:
            key = key_of("erase", self._seed, batch.epoch)
            images = erase(images, erased_boxes(key, self._numbers(images, batch), self._chosen.erase, height, width))
        mix = self._mix_of(batch, height, width)
        return (images, labels) if mix is None else mix_batch(images, labels, mix, self._classes)

    def _mix_of(self, batch: Batch, height: int, width: int) -> Mix | None:
        key = key_of("mix", self._seed, batch.epoch, batch.step, batch.micro_batch)
        return choose_mix(self._chosen, key, height, width)

    @staticmethod
    def _numbers(images: Tensor, batch: Batch) -> NDArray[np.int64]:
        numbers: NDArray[np.int64] = batch.numbers[: len(images)].numpy()
        return np.maximum(numbers, 0)  # padding, of which a rank without samples computes one


def _sign(kind: int, draw: float) -> int:
    return -1 if OPERATIONS[kind].is_signed and draw < 0.5 else 1
