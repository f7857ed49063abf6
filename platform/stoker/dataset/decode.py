"""Encoded image bytes to pixels: the training crop, and the preprocessing that evaluation and serving share.

Pixels are uint8 [3, H, W], RGB. Images are turned upright by their EXIF orientation, so that the model sees what
people see. Decoding and resampling are torchvision's, which release the interpreter's lock: call from threads.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import functional as transform

from stoker.errors import DatasetError
from stoker.recipe import Augment

__all__ = ["Box", "UndecodableImage", "decode", "evaluation_image", "random_resized_crop", "training_image"]

Box = tuple[int, int, int, int]
"""left, top, width, height in pixels"""

_ATTEMPTS = 10


class UndecodableImage(DatasetError):
    """Bytes are not an image that can be decoded: empty, truncated, or of another kind."""


def decode(data: bytes | memoryview) -> Tensor:
    """The whole image in ``data`` (JPEG, PNG, WebP or GIF): uint8 [3, H, W], RGB, upright.

    Raises:
        UndecodableImage: ``data`` is no such image, or is damaged.
    """
    if not len(data):
        raise UndecodableImage("the image is empty (0 bytes)")
    try:
        encoded = torch.from_numpy(np.frombuffer(data, np.uint8))
        return decode_image(encoded, mode=ImageReadMode.RGB, apply_exif_orientation=True)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UndecodableImage(f"the image cannot be decoded ({reason})") from None


def random_resized_crop(draws: NDArray[np.float64], width: int, height: int, augment: Augment) -> Box:
    """A box of random area and aspect in an image of ``width`` by ``height`` pixels.

    ``draws`` are uniform numbers in [0, 1), float64 [22]: two for each of ten attempts at a shape, two for the
    place. The method is that of Szegedy and others, *Going Deeper with Convolutions* (CVPR 2015), section 6, with
    the central crop of torchvision's RandomResizedCrop when no attempt fits.
    """
    area = width * height
    low, high = math.log(augment.ratio[0]), math.log(augment.ratio[1])
    for attempt in range(_ATTEMPTS):
        share = augment.scale[0] + (augment.scale[1] - augment.scale[0]) * draws[2 * attempt]
        aspect = math.exp(low + (high - low) * draws[2 * attempt + 1])
        w, h = round(math.sqrt(area * share * aspect)), round(math.sqrt(area * share / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(draws[-2] * (width - w + 1)), int(draws[-1] * (height - h + 1)), w, h
    aspect = min(max(width / height, augment.ratio[0]), augment.ratio[1])
    w, h = min(width, round(height * aspect)), min(height, round(width / aspect))
    return (width - w) // 2, (height - h) // 2, w, h


def training_image(
    data: bytes | memoryview, draws: NDArray[np.float64], *, image_size: int, augment: Augment
) -> Tensor:
    """A random crop of the image, resized to uint8 [3, image_size, image_size], flipped or not.

    ``draws``: float64 [23] in [0, 1); the first decides the flip, the rest the crop. The same bytes and draws give
    the same pixels.

    Raises:
        UndecodableImage: see :func:`decode`.
    """
    image = decode(data)
    left, top, width, height = random_resized_crop(draws[1:], image.shape[2], image.shape[1], augment)
    crop = transform.resized_crop_image(image, top, left, height, width, [image_size, image_size], antialias=True)
    return transform.horizontal_flip_image(crop) if draws[0] < augment.flip else crop


def evaluation_image(data: bytes | memoryview, *, image_size: int, resize: int) -> Tensor:
    """The image, its shorter side resized to ``resize``, its centre cropped: uint8 [3, image_size, image_size].

    This one function serves evaluation and prediction, so that they cannot differ.

    Raises:
        UndecodableImage: see :func:`decode`.
    """
    image = transform.resize_image(decode(data), [resize], antialias=True)
    return transform.center_crop_image(image, [image_size, image_size])
