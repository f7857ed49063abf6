"""Preprocess images for evaluation and serving alike: decode, resize, centre-crop."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as transform

from stoker.dataset.decode.image import decode, empty_images, resample
from stoker.dataset.decode.work import is_resized_whole, resized
from stoker.dataset.samples import Sample
from stoker.dataset.undecodable import UndecodableImage, UndecodableSample

__all__ = ["EvaluationImages", "evaluation_image"]


def evaluation_image(data: bytes | memoryview, *, image_size: int, resize: int) -> Tensor:
    """The image, its shorter side resized to ``resize``, its centre cropped: uint8 [3, image_size, image_size].

    This one function serves evaluation and prediction, so that they cannot differ. A long thin image of which the crop
    is a small part, some hundred times as long as wide, is not resized whole: that would take gigabytes of memory.

    Raises:
        UndecodableImage: see :func:`stoker.dataset.decode.decode`.
    """
    image = decode(data)
    height, width = image.shape[-2:]
    size = resized(height, width, resize)
    if is_resized_whole(*size, resize):
        whole = resample(image, *size)
    elif height <= width:
        whole = _middle_columns(image, *size, min(image_size, size[1]))
    else:
        turned = image.transpose(-1, -2)
        whole = _middle_columns(turned, resize, size[0], min(image_size, size[0])).transpose(-1, -2)
    return transform.center_crop_image(whole, [image_size, image_size])


def _middle_columns(image: Tensor, height: int, width: int, columns: int) -> Tensor:
    """The middle ``columns`` of ``image`` resized to ``height`` by ``width``: uint8 [3, height, columns].

    Only the source's pixels that these come from are resampled, by Pillow, whose box may begin within a pixel.
    Antialiased bilinear interpolation like :func:`resample`; values differ by rounding, 1 at most.
    """
    left = round((width - columns) / 2)  # as torchvision's centre crop
    scale = image.shape[-1] / width
    begin, stop = left * scale, (left + columns) * scale
    margin = math.ceil(max(1.0, scale)) + 1  # pixels beyond the box that the filter reaches
    first, last = max(0, int(begin) - margin), min(image.shape[-1], math.ceil(stop) + margin)
    source = Image.fromarray(image[..., first:last].permute(1, 2, 0).contiguous().numpy())
    box = (begin - first, 0.0, min(stop - first, float(last - first)), float(image.shape[-2]))
    resized = source.resize((columns, height), Image.Resampling.BILINEAR, box=box)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


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
