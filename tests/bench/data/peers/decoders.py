"""The decoders that a peer may call: JPEG bytes to a random crop of 224 pixels, flipped or not, uint8."""

from __future__ import annotations

import io
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.data.place import SIDE

__all__ = ["Decoder", "collate"]

Decode = Callable[[bytes], NDArray[np.uint8]]


class Decoder:
    """A decoder by name, made in the process that first calls it, so that it can be sent to a worker."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._decode: Decode | None = None

    def __call__(self, data: bytes) -> NDArray[np.uint8]:
        return self.warm()(data)

    def __getstate__(self) -> dict[str, Any]:
        return {"_name": self._name, "_decode": None}

    def warm(self) -> Decode:
        """Import what it needs."""
        if self._decode is None:
            self._decode = {"torchvision": _torchvision, "pillow": _pillow, "simplejpeg": _simplejpeg}[self._name]()
        return self._decode


def collate(rows: list[tuple[NDArray[np.uint8], int]]) -> tuple[Any, Any]:
    """(uint8 [n, …], int64 [n]) of pixels and labels."""
    import torch

    return torch.from_numpy(np.stack([row[0] for row in rows])), torch.tensor([int(row[1]) for row in rows])


def _torchvision() -> Decode:
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg
    from torchvision.transforms import v2

    torch.set_num_threads(1)
    crop = v2.Compose([v2.RandomResizedCrop(SIDE, antialias=True), v2.RandomHorizontalFlip()])

    def decode(data: bytes) -> NDArray[np.uint8]:
        encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return crop(decode_jpeg(encoded, mode=ImageReadMode.RGB)).numpy()

    return decode


def _pillow() -> Decode:
    import torch
    from PIL import Image
    from torchvision.transforms import v2

    torch.set_num_threads(1)
    crop = v2.Compose([v2.RandomResizedCrop(SIDE), v2.RandomHorizontalFlip(), v2.PILToTensor()])
    return lambda data: crop(Image.open(io.BytesIO(data)).convert("RGB")).numpy()


def _simplejpeg() -> Decode:
    import cv2
    import simplejpeg

    cv2.setNumThreads(1)
    draw = random.Random()

    def decode(data: bytes) -> NDArray[np.uint8]:
        image = simplejpeg.decode_jpeg(data, "RGB")
        left, top, width, height = _box(draw, image.shape[1], image.shape[0])
        method = cv2.INTER_AREA if min(width, height) > SIDE else cv2.INTER_LINEAR
        crop = cv2.resize(image[top : top + height, left : left + width], (SIDE, SIDE), interpolation=method)
        return cv2.flip(crop, 1) if draw.random() < 0.5 else crop

    return decode


def _box(draw: random.Random, width: int, height: int) -> tuple[int, int, int, int]:
    """RandomResizedCrop's box, for the decoder that has none."""
    for _ in range(10):
        area = width * height * draw.uniform(0.08, 1.0)
        aspect = math.exp(draw.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return draw.randint(0, width - w), draw.randint(0, height - h), w, h
    side = min(width, height)
    return (width - side) // 2, (height - side) // 2, side, side
