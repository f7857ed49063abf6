"""Decode encoded image bytes to the pixels of the whole image.

Pixels are uint8 [3, H, W], RGB. Images are turned upright by their EXIF orientation, so that the model sees what
people see; :mod:`stoker.dataset.format.image_header` alone reads it, never a decoder. Decoders and resampling release
the interpreter's lock: call from threads.
"""

from __future__ import annotations

import io
import struct

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode  # registers torch.ops.image too

from stoker.dataset.decode.crop import turned
from stoker.dataset.decode.decoder import UndecodableSample
from stoker.dataset.format.image_header import exif_orientation, without_text

__all__ = ["UndecodableImage", "decode", "decode_jpeg", "empty_images", "image_kind", "image_size", "resample"]

_RGB = ImageReadMode.RGB.value
_PNG_END = b"IEND\xaeB`\x82"
_WEBP_ANIMATED, _WEBP_EXIF = 0x02, 0x08
_PILLOW_ERRORS = (
    *(OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError),
    *(TypeError, AttributeError, LookupError, ArithmeticError),  # of damaged headers and metadata
)


class UndecodableImage(UndecodableSample):
    """The bytes are not an image that can be decoded: empty, truncated, or of another kind."""


def image_kind(data: bytes | memoryview) -> str:
    """The kind of image by its first bytes, whatever the file's name: ``jpg``, ``png``, ``webp`` or ``gif``.

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
    raise UndecodableImage(
        "not an image that stoker decodes (its first bytes are not those of a JPEG, PNG, WebP or GIF)"
    )


def image_size(data: bytes | memoryview) -> tuple[int, int]:
    """(width, height) in pixels by the image's header alone, before any EXIF rotation; no pixels are decoded.

    Raises:
        UndecodableImage: the header is not that of an image, or declares more than 179 million pixels.
    """
    kind = image_kind(data)
    try:
        with _opened(data, kind) as image:
            return image.size
    except _PILLOW_ERRORS as error:
        raise UndecodableImage(f"the {kind} image's header cannot be read ({_one_line(error)})") from None


def decode(data: bytes | memoryview) -> Tensor:
    """The whole image in ``data`` (JPEG, PNG, WebP or GIF; the first frame if animated): uint8 [3, H, W], upright.

    Grey, palette and CMYK become RGB, transparency is dropped, 16 bits a channel become 8.

    torchvision decodes JPEG and still WebP. PNG never goes there: its decoder ends the process (SIGSEGV, torchvision
    0.29.2) on a PNG whose data is damaged in the middle, and a server accepts images from anybody. Pillow decodes PNG
    and whatever else torchvision cannot.

    Raises:
        UndecodableImage: ``data`` is not such an image, is truncated, or is visibly damaged.
    """
    kind = image_kind(data)
    pixels, orientation = _stored_pixels(data, kind), exif_orientation(data, kind)
    return pixels if orientation == 1 else turned(pixels, orientation).contiguous()


def _stored_pixels(data: bytes | memoryview, kind: str) -> Tensor:
    if kind == "jpg":
        return decode_jpeg(bytearray(data))
    if kind == "webp" and not _needs_pillow(data):
        try:
            return torch.ops.image.decode_webp(torch.frombuffer(bytearray(data), dtype=torch.uint8), _RGB)
        except (RuntimeError, ValueError):
            pass  # Pillow decodes it, or reports clearly why it cannot
    if kind == "png" and bytes(data).rfind(_PNG_END) < 0:
        raise UndecodableImage("the png image cannot be decoded (it is truncated)")
    return _decode_by_pillow(data, kind)


def decode_jpeg(data: bytearray) -> Tensor:
    """The whole JPEG in ``data`` as it is stored, not turned: uint8 [3, H, W].

    Raises:
        UndecodableImage: see :func:`decode`.
    """
    try:
        # what torchvision.io.decode_jpeg calls; here without a deprecation warning an image
        return torch.ops.image.decode_jpeg(torch.frombuffer(data, dtype=torch.uint8), _RGB, False)
    except (RuntimeError, ValueError):
        return _decode_by_pillow(data, "jpg")  # or reports clearly why it cannot


def resample(pixels: Tensor, height: int, width: int, out: Tensor | None = None) -> Tensor:
    """``pixels`` (uint8 [3, H, W]) resized with antialiased bilinear interpolation: uint8 [3, height, width].

    To ``out`` if given, any channels_last view of that shape. Equal in every value to torchvision's resize with
    ``antialias=True``, at two thirds of its time, because interleaved channels are not separated.
    """
    together = pixels[None].contiguous(memory_format=torch.channels_last)
    if out is None:
        out = torch.empty((1, 3, height, width), dtype=torch.uint8, memory_format=torch.channels_last)[0]
    torch.ops.aten._upsample_bilinear2d_aa.out(together, [height, width], False, None, None, out=out[None])
    return out


def empty_images(count: int, side: int) -> Tensor:
    """Allocate ``count`` images: uint8 [count, 3, side, side], channels_last, in pinned memory if there is a GPU.

    The memory of released batches is reused, by the C library or by PyTorch's pinned-memory cache.
    """
    shape = (count, 3, side, side)
    is_pinned = torch.cuda.is_available()
    return torch.empty(shape, dtype=torch.uint8, memory_format=torch.channels_last, pin_memory=is_pinned)


def _needs_pillow(data: bytes | memoryview) -> bool:
    """Whether a WebP is animated or has EXIF (extended format), which torchvision refuses or ignores."""
    return bytes(data[12:16]) == b"VP8X" and len(data) > 20 and bool(data[20] & (_WEBP_ANIMATED | _WEBP_EXIF))


def _opened(data: bytes | bytearray | memoryview, kind: str) -> Image.Image:
    """The image, its header read by Pillow, to which a PNG's texts, profile and EXIF are not shown."""
    return Image.open(io.BytesIO(without_text(data) if kind == "png" else data), formats=("JPEG", "PNG", "WEBP", "GIF"))


def _decode_by_pillow(data: bytes | bytearray | memoryview, kind: str) -> Tensor:
    try:
        with _opened(data, kind) as opened:
            opened.load()
            image: Image.Image = opened
            if image.mode.startswith("I"):  # 16 bits: Pillow's own conversion clips instead of scaling
                wide = np.asarray(image).astype(np.uint32)
                image = Image.fromarray((wide >> 8).clip(0, 255).astype(np.uint8))
            pixels = np.array(image.convert("RGB"))
    except _PILLOW_ERRORS as error:
        raise UndecodableImage(f"the {kind} image cannot be decoded ({_one_line(error)})") from None
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
