"""What the device does to a micro-batch before the model sees it. Every draw is keyed, none depends on rank or time.

    uint8 ─ pixels: RandAugment or TrivialAugment ─▶ normalised to float ─ mix: erasing, then mixup or cutmix ─▶ model
            keyed by (seed, epoch, sample)                            by sample          by micro-batch

RandAugment: Cubuk and others (CVPR Workshops 2020). TrivialAugment, the wide space: Müller and Hutter (ICCV 2021).
Random erasing: Zhong and others (AAAI 2020). Mixup: Zhang and others (ICLR 2018). CutMix: Yun and others (ICCV 2019).
Ranges are those of torchvision's classes of these names. The parameters are drawn on the host; the device is not
waited for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stoker.dataset import Batch
from stoker.dataset.order import key_of, uniform
from stoker.recipe import Recipe
from stoker.training.augment.operations import OPERATIONS, apply_operations, on_device

__all__ = ["Augmentation", "Mix", "erase", "erased_boxes"]

_BINS = 31
"""strengths of an operation, from none to its range's end"""
_ERASED_SHARE, _ERASED_RATIO = (0.02, 0.33), (0.3, 3.3)
_ATTEMPTS = 10
_SIGNED = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "color", "contrast", "sharpness")


@dataclass(frozen=True)
class Mix:
    """How a micro-batch is mixed with itself, moved on by one sample.

    ``share`` is of the image that stays, 0 to 1. ``box`` is left, top, right, bottom in pixels, where cutmix takes the
    other image; None is mixup.
    """

    share: float
    box: tuple[int, int, int, int] | None = None


class Augmentation:
    """The recipe's ``augmentation`` section at work; ``classes`` is the number of outputs."""

    def __init__(self, recipe: Recipe, classes: int) -> None:
        self._chosen, self._seed, self._classes = recipe.augmentation, recipe.seed, classes

    def pixels(self, images: Tensor, batch: Batch) -> Tensor:
        """Vary ``images``, the first n of ``batch`` on the device: uint8 [n, 3, H, W] to a tensor of the same kind."""
        if self._chosen.policy == "none":
            return images
        wide = self._chosen.policy == "trivial_augment_wide"
        rounds = 1 if wide else self._chosen.operations
        draws = uniform(key_of("operations", self._seed, batch.epoch), self._numbers(images, batch), 3 * rounds)
        height, width = images.shape[-2:]
        for of_round in np.split(draws, rounds, axis=1):
            kinds = (of_round[:, 0] * len(OPERATIONS)).astype(np.int64)
            bins = (of_round[:, 1] * _BINS).astype(np.int64) if wide else np.full(len(kinds), self._chosen.magnitude)
            strengths = [
                _strength(OPERATIONS[kind], bin_ / (_BINS - 1), height, width, is_wide=wide) * _sign(kind, draw)
                for kind, bin_, draw in zip(kinds.tolist(), bins.tolist(), of_round[:, 2].tolist(), strict=True)
            ]
            images = apply_operations(images, kinds, np.array(strengths))
        return images

    def mix(self, images: Tensor, labels: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Erase and mix: normalised images (float [n, 3, H, W]) and labels (int64 [n]) to images and targets.

        Targets are the labels, or where samples are mixed float32 [n, classes] whose rows sum to 1.
        """
        if self._chosen.erase:
            key = key_of("erase", self._seed, batch.epoch)
            height, width = images.shape[-2:]
            boxes = erased_boxes(key, self._numbers(images, batch), self._chosen.erase, height, width)
            images = erase(images, boxes)
        mix = self._mix_of(batch, *images.shape[-2:])
        if mix is None:
            return images, labels
        other = images.roll(1, 0)
        if mix.box is None:
            images = images * mix.share + other * (1 - mix.share)
        else:
            left, top, right, bottom = mix.box
            images = images.clone()
            images[..., top:bottom, left:right] = other[..., top:bottom, left:right]
        targets = _one_hot(labels, self._classes)
        return images, targets * mix.share + targets.roll(1, 0) * (1 - mix.share)

    def _mix_of(self, batch: Batch, height: int, width: int) -> Mix | None:
        """What happens to all of a micro-batch; the same whoever asks."""
        mixup, cutmix = self._chosen.mixup, self._chosen.cutmix
        if not mixup and not cutmix:
            return None
        key = key_of("mix", self._seed, batch.epoch, batch.step, batch.micro_batch)
        draws = np.random.Generator(np.random.Philox(key))
        choice, x, y = draws.random(3).tolist()
        cuts = cutmix > 0 and (mixup == 0 or choice < 0.5)
        alpha = cutmix if cuts else mixup
        share = float(draws.beta(alpha, alpha))
        if not cuts:
            return Mix(share)
        half = 0.5 * math.sqrt(1 - share)
        column, row = int(x * width), int(y * height)
        left, right = max(0, column - int(half * width)), min(width, column + int(half * width))
        top, bottom = max(0, row - int(half * height)), min(height, row + int(half * height))
        return Mix(1 - (right - left) * (bottom - top) / (width * height), (left, top, right, bottom))

    @staticmethod
    def _numbers(images: Tensor, batch: Batch) -> NDArray[np.int64]:
        numbers: NDArray[np.int64] = batch.numbers[: len(images)].numpy()
        return np.maximum(numbers, 0)  # padding, of which a rank without samples computes one


def erased_boxes(
    key: int, numbers: NDArray[np.int64], probability: float, height: int, width: int
) -> NDArray[np.int64]:
    """The rectangle that each sample loses: int64 [n, 4], left, top, right, bottom in pixels; empty for most.

    As torchvision's RandomErasing: 2 to 33 % of the image, 0.3 to 3.3 times as high as wide, ten attempts to fit.
    """
    draws = uniform(key, numbers, 1 + 4 * _ATTEMPTS)
    tries = draws[:, 1:].reshape(len(numbers), _ATTEMPTS, 4)
    low, high = _ERASED_SHARE
    areas = height * width * (low + (high - low) * tries[..., 0])
    low, high = (math.log(bound) for bound in _ERASED_RATIO)
    ratios = np.exp(low + (high - low) * tries[..., 1])
    heights, widths = np.rint(np.sqrt(areas * ratios)), np.rint(np.sqrt(areas / ratios))
    fits = (heights < height) & (widths < width)
    chosen = fits.argmax(axis=1)[:, None]
    high_, wide = (np.take_along_axis(values, chosen, 1)[:, 0] for values in (heights, widths))
    y, x = (np.take_along_axis(tries[..., i], chosen, 1)[:, 0] for i in (2, 3))
    top, left = np.floor(y * (height - high_ + 1)), np.floor(x * (width - wide + 1))
    boxes = np.stack((left, top, left + wide, top + high_), axis=1).astype(np.int64)
    boxes[(draws[:, 0] >= probability) | ~fits.any(axis=1)] = 0
    return boxes


def erase(images: Tensor, boxes: NDArray[np.int64]) -> Tensor:
    """``images`` (float [n, 3, H, W]) with 0, the channels' mean, in each one's box (left, top, right, bottom)."""
    left, top, right, bottom = on_device(boxes, images.device).T[:, :, None, None, None]
    rows = torch.arange(images.shape[2], device=images.device)[:, None]
    columns = torch.arange(images.shape[3], device=images.device)
    inside = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
    return images.masked_fill(inside, 0.0)


def _one_hot(labels: Tensor, classes: int) -> Tensor:
    """float32 [n, classes]; torch's own checks its argument, which waits for the device."""
    return (labels[:, None] == torch.arange(classes, device=labels.device)).float()


def _sign(kind: int, draw: float) -> int:
    return -1 if OPERATIONS[kind] in _SIGNED and draw < 0.5 else 1


def _strength(name: str, share: float, height: int, width: int, *, is_wide: bool) -> float:
    """The strength of the operation ``name`` at ``share`` (0 to 1) of its range, in the units of apply_operations."""
    if name in ("shear_x", "shear_y"):
        return share * (0.99 if is_wide else 0.3)
    if name in ("translate_x", "translate_y"):
        side = width if name == "translate_x" else height
        return share * (32.0 if is_wide else 150.0 / 331.0 * side)
    if name == "rotate":
        return share * (135.0 if is_wide else 30.0)
    if name == "posterize":
        return 8 - round(share * (6 if is_wide else 4))
    if name == "solarize":
        return 1 - share
    return share * (0.99 if is_wide else 0.9)
