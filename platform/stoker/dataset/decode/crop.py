"""Choose training crops (random-resized-crop), and map boxes between upright and stored pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from stoker.dataset.format.jpeg import Box
from stoker.recipe import Augment

__all__ = ["CROP_DRAWS", "random_resized_crop", "stored_box", "turned"]

CROP_DRAWS = 22
"""two numbers for each of ten attempts at a shape, two for the position"""

_ATTEMPTS = 10
_MIRRORED = frozenset({2, 3, 7, 8})
"""EXIF orientations with reversed rows"""
_OVERTURNED = frozenset({3, 4, 6, 7})
"""EXIF orientations with reversed columns"""
_TURNED = 5
"""the first EXIF orientation (5 to 8) that swaps width and height"""


def random_resized_crop(draws: Sequence[float], width: int, height: int, augment: Augment) -> Box:
    """Choose a box of random area and aspect ratio in an image of ``width`` by ``height`` pixels.

    ``draws`` are uniform numbers in [0, 1), ``CROP_DRAWS`` of them. The method is that of Szegedy and others, *Going
    Deeper with Convolutions* (CVPR 2015), section 6, with the central crop of torchvision's RandomResizedCrop when no
    attempt fits.
    """
    area = width * height
    smallest, span = augment.scale[0], augment.scale[1] - augment.scale[0]
    low, high = math.log(augment.ratio[0]), math.log(augment.ratio[1])
    for attempt in range(_ATTEMPTS):
        fraction = smallest + span * draws[2 * attempt]
        aspect = math.exp(low + (high - low) * draws[2 * attempt + 1])
        w, h = round(math.sqrt(area * fraction * aspect)), round(math.sqrt(area * fraction / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(draws[-2] * (width - w + 1)), int(draws[-1] * (height - h + 1)), w, h
    aspect = min(max(width / height, augment.ratio[0]), augment.ratio[1])
    w, h = min(width, max(1, round(height * aspect))), min(height, max(1, round(width / aspect)))
    return (width - w) // 2, (height - h) // 2, w, h


def stored_box(box: Box, width: int, height: int, orientation: int) -> Box:
    """Map ``box`` of the upright image to the stored one, which is ``width`` by ``height``.

    ``orientation`` is that of EXIF (CIPA DC-008, tag 0x0112), 1 to 8.
    """
    left, top, w, h = box
    if orientation >= _TURNED:
        left, top, w, h = top, left, h, w
    if orientation in _MIRRORED:
        left = width - left - w
    if orientation in _OVERTURNED:
        top = height - top - h
    return left, top, w, h


def turned(pixels: Tensor, orientation: int) -> Tensor:
    """Turn stored pixels [..., H, W] upright: [..., H, W] or, for orientations 5 to 8, [..., W, H]."""
    backwards = [d for d, which in ((-2, _OVERTURNED), (-1, _MIRRORED)) if orientation in which]
    upright = pixels.flip(backwards) if backwards else pixels
    return upright.transpose(-1, -2) if orientation >= _TURNED else upright
