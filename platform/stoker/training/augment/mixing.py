"""Erase rectangles of images, and mix the images and labels of a micro-batch: random erasing, mixup, cutmix.

Random erasing: Zhong and others (AAAI 2020). Mixup: Zhang and others (ICLR 2018). CutMix: Yun and others (ICCV 2019).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stoker import recipe as recipes
from stoker.dataset.order import uniform
from stoker.training.augment.operations import to_device

__all__ = ["Mix", "choose_mix", "erase", "erased_boxes", "mix_batch"]

_ERASED_AREA, _ERASED_RATIO = (0.02, 0.33), (0.3, 3.3)
"""fraction of the image's area; height by width"""
_ATTEMPTS = 10


@dataclass(frozen=True)
class Mix:
    """How a micro-batch is mixed with itself, shifted by one sample.

    ``lam`` (0 to 1) is the weight of the image that stays, lambda in the papers. ``box`` is left, top, right, bottom in
    pixels, where cutmix takes the other image; None is mixup.
    """

    lam: float
    box: tuple[int, int, int, int] | None = None


def choose_mix(chosen: recipes.Augmentation, key: int, height: int, width: int) -> Mix | None:
    """Draw how a micro-batch of images of ``height`` by ``width`` pixels is mixed; None: it is not.

    ``key`` alone decides the draws, so every rank draws the same.
    """
    mixup, cutmix = chosen.mixup, chosen.cutmix
    if not mixup and not cutmix:
        return None
    draws = np.random.Generator(np.random.Philox(key))
    choice, x, y = draws.random(3).tolist()
    cuts = cutmix > 0 and (mixup == 0 or choice < 0.5)
    alpha = cutmix if cuts else mixup
    lam = float(draws.beta(alpha, alpha))
    if not cuts:
        return Mix(lam)
    half = 0.5 * math.sqrt(1 - lam)
    column, row = int(x * width), int(y * height)
    left, right = max(0, column - int(half * width)), min(width, column + int(half * width))
    top, bottom = max(0, row - int(half * height)), min(height, row + int(half * height))
    return Mix(1 - (right - left) * (bottom - top) / (width * height), (left, top, right, bottom))


def mix_batch(images: Tensor, labels: Tensor, mix: Mix, classes: int) -> tuple[Tensor, Tensor]:
    """Mix ``images`` (float [n, 3, H, W]) and ``labels`` (int64 [n]) with themselves, shifted by one sample.

    Returns images and targets, float32 [n, classes], whose rows sum to 1.
    """
    other = images.roll(1, 0)
    if mix.box is None:
        images = images * mix.lam + other * (1 - mix.lam)
    else:
        left, top, right, bottom = mix.box
        images = images.clone()
        images[..., top:bottom, left:right] = other[..., top:bottom, left:right]
    targets = _one_hot(labels, classes)
    return images, targets * mix.lam + targets.roll(1, 0) * (1 - mix.lam)


def erased_boxes(
    key: int, numbers: NDArray[np.int64], probability: float, height: int, width: int
) -> NDArray[np.int64]:
    """Draw the rectangle that each sample loses: int64 [n, 4], left, top, right, bottom in pixels; empty for most.

    As torchvision's RandomErasing: 2 to 33 % of the image, 0.3 to 3.3 times as high as wide, ten attempts to fit.
    """
    draws = uniform(key, numbers, 1 + 4 * _ATTEMPTS)
    tries = draws[:, 1:].reshape(len(numbers), _ATTEMPTS, 4)
    low, high = _ERASED_AREA
    areas = height * width * (low + (high - low) * tries[..., 0])
    low, high = (math.log(bound) for bound in _ERASED_RATIO)
    ratios = np.exp(low + (high - low) * tries[..., 1])
    heights, widths = np.rint(np.sqrt(areas * ratios)), np.rint(np.sqrt(areas / ratios))
    fits = (heights < height) & (widths < width)
    first = fits.argmax(axis=1)[:, None]
    tall, wide = (np.take_along_axis(values, first, 1)[:, 0] for values in (heights, widths))
    y, x = (np.take_along_axis(tries[..., i], first, 1)[:, 0] for i in (2, 3))
    top, left = np.floor(y * (height - tall + 1)), np.floor(x * (width - wide + 1))
    boxes = np.stack((left, top, left + wide, top + tall), axis=1).astype(np.int64)
    boxes[(draws[:, 0] >= probability) | ~fits.any(axis=1)] = 0
    return boxes


def erase(images: Tensor, boxes: NDArray[np.int64]) -> Tensor:
    """Set each image's box (left, top, right, bottom) to 0, the channels' mean: float [n, 3, H, W]."""
    left, top, right, bottom = to_device(boxes, images.device).T[:, :, None, None, None]
    rows = torch.arange(images.shape[2], device=images.device)[:, None]
    columns = torch.arange(images.shape[3], device=images.device)
    inside = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
    return images.masked_fill(inside, 0.0)


def _one_hot(labels: Tensor, classes: int) -> Tensor:
    """float32 [n, classes]; torch's own one_hot checks its argument, which waits for the device."""
    return (labels[:, None] == torch.arange(classes, device=labels.device)).float()
