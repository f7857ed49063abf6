"""Decode random crops for training, resized and flipped, without decoding the rest of the image.

    draws ─▶ box ─▶ the crop's own JPEG ─decode─▶ pixels ─resample─▶ place in the batch ─▶ flipped or not
             (from the index's size)  (stoker.dataset.format.jpeg)

An image that cannot be cut (not a JPEG, or without restart markers) is decoded whole and then cropped. Either way
every pixel equals that of decoding everything, cropping, and torchvision's antialiased resize.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from stoker.dataset.decode.crop import CROP_DRAWS, random_resized_crop, stored_box, turned
from stoker.dataset.decode.image import decode, decode_jpeg, empty_images, resample
from stoker.dataset.format.jpeg import Box, crop_jpeg
from stoker.dataset.format.parts import without_metadata
from stoker.dataset.samples import Sample
from stoker.dataset.undecodable import UndecodableImage, UndecodableSample
from stoker.recipe import Augment

__all__ = ["TrainingImages"]

_TURNED = 5


class TrainingImages:
    """Decodes for training: uint8 [m, 3, image_size, image_size], channels_last, RGB, upright.

    The first of a sample's draws decides the flip, the others the crop (``stoker.dataset.decode.crop``). With
    ``scales_in_dct`` crops of at least twice the output's side are decoded at a half, a quarter or an eighth of
    their size (the decoder leaves out frequencies), which is faster; on photographs their pixels then differ from those
    of Pillow's antialiased resize by 2/255 in the mean at most, as a test holds.
    """

    draws = 1 + CROP_DRAWS

    def __init__(self, image_size: int, augment: Augment, *, scales_in_dct: bool = False) -> None:
        self._image_size, self._augment, self._scales_in_dct = image_size, augment, scales_in_dct

    def empty(self, count: int) -> Tensor:
        return empty_images(count, self._image_size)

    def decode(
        self, samples: Sequence[Sample], draws: NDArray[np.float64], out: Tensor
    ) -> dict[int, UndecodableSample]:
        failed: dict[int, UndecodableSample] = {}
        for i, (sample, own) in enumerate(zip(samples, draws.tolist(), strict=True)):
            try:
                self._decode(sample, own, out[i])
            except UndecodableImage as error:
                failed[i] = error
        return failed

    def _decode(self, sample: Sample, draws: list[float], out: Tensor) -> None:
        side = self._image_size
        if draws[0] >= self._augment.flip:
            self._resized(sample, draws[1:], out)
        else:
            unflipped = torch.empty((1, 3, side, side), dtype=torch.uint8, memory_format=torch.channels_last)[0]
            out.copy_(self._resized(sample, draws[1:], unflipped).flip(-1))

    def _resized(self, sample: Sample, draws: list[float], out: Tensor) -> Tensor:
        marks, orientation = sample.marks, sample.orientation
        if marks is None:
            image = decode(sample.data)
            left, top, width, height = random_resized_crop(draws, image.shape[2], image.shape[1], self._augment)
            crop = image[:, top : top + height, left : left + width]
            return resample(crop, self._image_size, self._image_size, out)
        size = (marks.height, marks.width) if orientation >= _TURNED else (marks.width, marks.height)
        box = stored_box(random_resized_crop(draws, *size, self._augment), marks.width, marks.height, orientation)
        try:
            encoded, (left, top, width, height) = crop_jpeg(sample.data, marks, box)
        except ValueError as error:
            raise UndecodableImage(f"the jpg image cannot be cut ({error})") from None
        if self._scales_in_dct and min(width, height) >= 2 * self._image_size:
            return self._scaled(encoded, (left, top, width, height), orientation, out)
        pixels = decode_jpeg(encoded)[:, top : top + height, left : left + width]
        return resample(turned(pixels, orientation), self._image_size, self._image_size, out)

    def _scaled(self, encoded: bytearray, box: Box, orientation: int, out: Tensor) -> Tensor:
        """The crop by Pillow, which lets libjpeg decode at 1/2, 1/4 or 1/8 (its draft mode)."""
        side, (left, top, width, height) = self._image_size, box
        try:
            with Image.open(io.BytesIO(without_metadata(encoded, "jpg")), formats=("JPEG",)) as image:
                whole = image.size
                shrink = min(width, height) // side
                image.draft("RGB", (-(-whole[0] // shrink), -(-whole[1] // shrink)))
                scale = round(whole[0] / image.size[0])
                edges = (left / scale, top / scale, (left + width) / scale, (top + height) / scale)
                small = image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR, box=edges)
        except MemoryError:
            raise
        except Exception as error:  # Pillow raises what its readers raise, of every kind
            raise UndecodableImage(f"the jpg image cannot be decoded ({error})") from None
        return out.copy_(turned(torch.from_numpy(np.array(small)).permute(2, 0, 1), orientation))
