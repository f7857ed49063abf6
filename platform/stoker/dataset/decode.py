"""Encoded image bytes to pixels: the training crop, and the preprocessing that evaluation and serving share.

Pixels are uint8 [3, H, W], RGB. Images are turned upright by their EXIF orientation, so that the model sees what
people see. Decoders and resampling release the interpreter's lock: call from threads.
"""

from __future__ import annotations

import io
import math
import struct

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import functional as transform

from stoker.errors import DatasetError
from stoker.recipe import Augment

__all__ = [
    "Box",
    "UndecodableImage",
    "decode",
    "evaluation_image",
    "image_kind",
    "image_size",
    "random_resized_crop",
    "training_image",
]

Box = tuple[int, int, int, int]
"""left, top, width, height in pixels"""

_ATTEMPTS = 10
_PNG_END = b"IEND\xaeB`\x82"
_WEBP_ANIMATED, _WEBP_EXIF = 0x02, 0x08
_PILLOW_ERRORS = (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError)


class UndecodableImage(DatasetError):
    """Bytes are not an image that can be decoded: empty, truncated, or of another kind."""


def image_kind(data: bytes | memoryview) -> str:
    """What the bytes begin as, whatever their file's name says: ``jpg``, ``png``, ``webp`` or ``gif``.

    Raises:
        UndecodableImage: none of these.
    """
    start = bytes(data[:12])
    if start.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        return "webp"
    if start.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if not start:
        raise UndecodableImage("the image is empty (0 bytes)")
    raise UndecodableImage("not an image that stoker decodes (it begins as no JPEG, PNG, WebP or GIF does)")


def image_size(data: bytes | memoryview) -> tuple[int, int]:
    """(width, height) in pixels by the image's header alone, before any EXIF rotation; no pixel is decoded.

    Raises:
        UndecodableImage: the header is not that of an image, or promises more than 179 million pixels.
    """
    kind = image_kind(data)
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.size
    except _PILLOW_ERRORS as error:
        raise UndecodableImage(f"the {kind} image's header cannot be read ({_one_line(error)})") from None


def decode(data: bytes | memoryview) -> Tensor:
    """The whole image in ``data`` (JPEG, PNG, WebP or GIF; the first picture if it moves): uint8 [3, H, W], upright.

    Grey, palette and CMYK become RGB, transparency is dropped, 16 bits a channel become 8.

    torchvision decodes JPEG and still WebP. PNG never goes there: its decoder ends the process (SIGSEGV, torchvision
    0.29.2) on a PNG whose data is damaged in the middle, and a server takes pictures from anybody. Pillow decodes PNG
    and whatever else torchvision cannot.

    Raises:
        UndecodableImage: ``data`` is no such image, is truncated, or is damaged so that it shows.
    """
    kind = image_kind(data)
    if kind == "jpg" or (kind == "webp" and not _needs_pillow(data)):
        try:
            encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            return decode_image(encoded, mode=ImageReadMode.RGB, apply_exif_orientation=True)
        except (RuntimeError, ValueError):
            pass  # Pillow decodes it or says in plain words why not
    if kind == "png" and bytes(data).rfind(_PNG_END) < 0:
        raise UndecodableImage("the png image cannot be decoded (it is truncated)")
    try:
        return _decode_by_pillow(data)
    except _PILLOW_ERRORS as error:
        raise UndecodableImage(f"the {kind} image cannot be decoded ({_one_line(error)})") from None


def _needs_pillow(data: bytes | memoryview) -> bool:
    """Whether a WebP moves or carries EXIF, which torchvision refuses and ignores (WebP container, extended format)."""
    return bytes(data[12:16]) == b"VP8X" and len(data) > 20 and bool(data[20] & (_WEBP_ANIMATED | _WEBP_EXIF))


def _decode_by_pillow(data: bytes | memoryview) -> Tensor:
    with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP", "GIF")) as opened:
        opened.load()
        upright = ImageOps.exif_transpose(opened)
        if upright.mode.startswith("I"):  # 16 bits: Pillow's own conversion clips instead of scaling
            wide = np.asarray(upright).astype(np.uint32)
            upright = Image.fromarray((wide >> 8).clip(0, 255).astype(np.uint8))
        pixels = np.array(upright.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


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
