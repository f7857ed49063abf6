"""Preprocess images for evaluation and serving alike: decode, resize, centre-crop."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as transform

from stoker.dataset.decode.decoder import UndecodableSample
from stoker.dataset.decode.image import UndecodableImage, decode, empty_images, resample
from stoker.dataset.samples import Sample

__all__ = ["EvaluationImages", "evaluation_image"]

_LONGEST = 8
"""an image that is longer, in widths, is cut before it is resized; photographs and panoramas are not"""


def evaluation_image(data: bytes | memoryview, *, image_size: int, resize: int) -> Tensor:
    """The image, its shorter side resized to ``resize``, its centre cropped: uint8 [3, image_size, image_size].

    This one function serves evaluation and prediction, so that they cannot differ.

    Raises:
        UndecodableImage: see :func:`stoker.dataset.decode.decode`.
    """
    image = _not_longer(decode(data), max(_LONGEST, 2 * math.ceil(image_size / resize)))
    height, width = image.shape[-2:]
    if height <= width:
        resized = resample(image, resize, int(resize * width / height))
    else:
        resized = resample(image, int(resize * height / width), resize)
    return transform.center_crop_image(resized, [image_size, image_size])


def _not_longer(image: Tensor, times: int) -> Tensor:
    """The middle of ``image``, at most ``times`` as long as it is wide: far more than the centre crop needs.

    A line of 60,000 pixels would become 256 times as high and as long.
    """
    height, width = image.shape[-2:]
    short, long = min(height, width), max(height, width)
    # as odd or even as the whole, so that the middle stays the middle
    if (over := (long - times * short) // 2) <= 0:
        return image
    return image.narrow(-1 if width > height else -2, over, long - 2 * over)


class EvaluationImages:
    """Decodes for evaluation: uint8 [m, 3, image_size, image_size], channels_last, RGB, as :func:`evaluation_image`."""

    draws = 0

    def __init__(self, image_size: int, resize: int) -> None:
        self._image_size, self._resize = image_size, resize

    def empty(self, count: int) -> Tensor:
        return empty_images(count, self._image_size)

    def decode(
        self, samples: Sequence[Sample], draws: NDArray[np.float64], out: Tensor
    ) -> dict[int, UndecodableSample]:
        failed: dict[int, UndecodableSample] = {}
        for i, sample in enumerate(samples):
            try:
                out[i] = evaluation_image(sample.data, image_size=self._image_size, resize=self._resize)
            except UndecodableImage as error:
                failed[i] = error
        return failed
