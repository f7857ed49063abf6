"""Decode encoded image bytes to the pixels of the whole image.

Pixels are uint8 [3, H, W], RGB. Images are turned upright by their EXIF orientation, so that the model sees what
people see. Decoders and resampling release the interpreter's lock: call from threads.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode  # registers torch.ops.image too

from stoker.dataset.decode.crop import turned
from stoker.dataset.format.exif import UPRIGHT
from stoker.dataset.format.image_header import MOST_PIXELS, MOST_SCANS, ImageHeader, image_kind, read_header
from stoker.dataset.format.parts import without_metadata
from stoker.dataset.undecodable import UndecodableImage

__all__ = [
    "UndecodableImage",
    "decode",
    "decode_jpeg",
    "empty_images",
    "image_header",
    "opened_by_pillow",
    "resample",
]

_RGB = ImageReadMode.RGB.value
_PNG_END = b"IEND\xaeB`\x82"
_WEBP_ANIMATED, _WEBP_EXIF = 0x02, 0x08


def image_header(data: bytes | bytearray | memoryview) -> ImageHeader:
    """What the image says about itself: kind, size, orientation; no pixels are decoded.

    Raises:
        UndecodableImage: the bytes are not those of such an image, or it has more than ``MOST_PIXELS`` pixels or
            ``MOST_SCANS`` scans.
    """
    header = read_header(data)
    if header is None:
        raise UndecodableImage(_no_header(data))
    if header.held_pixels > MOST_PIXELS:
        raise UndecodableImage(
            f"the {header.kind} image is {header.width} by {header.height} pixels, which is more than the "
            f"{MOST_PIXELS:,} that are decoded; scale it down"
        )
    if header.scans > MOST_SCANS:
        raise UndecodableImage(
            f"the {header.kind} image has more than the {MOST_SCANS} scans that are decoded; save it with fewer"
        )
    return header


def _no_header(data: bytes | bytearray | memoryview) -> str:
    kind = image_kind(data)
    if kind is not None:
        return f"the {kind} image's header cannot be read (it is truncated, damaged, or of thousands of parts)"
    if not data:
        return "the image is empty (0 bytes)"
    return "not an image that stoker decodes (its first bytes are not those of a JPEG, PNG, WebP or GIF)"


def decode(data: bytes | memoryview) -> Tensor:
    """The whole image in ``data`` (JPEG, PNG, WebP or GIF; the first frame if animated): uint8 [3, H, W], upright.

    Grey, palette and CMYK become RGB, transparency is dropped (``stoker.dataset.decode.opacity`` reads it), 16 bits a
    channel become 8. The pixels are decoded as they are stored, and turned by the orientation of the image's header
    (``stoker.dataset.format.image_header``).

    torchvision decodes JPEG and still WebP. PNG never goes there: its decoder ends the process (SIGSEGV, torchvision
    0.29.2) on a PNG whose data is damaged in the middle, and a server accepts images from anybody. Pillow decodes PNG
    and whatever else torchvision cannot.

    Raises:
        UndecodableImage: ``data`` is not such an image, is truncated, or is visibly damaged.
    """
    header = image_header(data)
    pixels = _stored_pixels(data, header)
    if pixels.shape[1:] != (header.height, header.width):
        raise _other_size(header, pixels.shape[2], pixels.shape[1])
    return pixels if header.orientation == UPRIGHT else turned(pixels, header.orientation).contiguous()


def decode_jpeg(data: bytearray) -> Tensor:
    """The whole JPEG in ``data`` as it is stored, not turned: uint8 [3, H, W].

    Raises:
        UndecodableImage: see :func:`decode`.
    """
    try:
        # what torchvision.io.decode_jpeg calls; here without a deprecation warning an image
        return torch.ops.image.decode_jpeg(torch.frombuffer(data, dtype=torch.uint8), _RGB, False)
    except (RuntimeError, ValueError):
        return _decode_by_pillow(data, image_header(data))  # or reports clearly why it cannot


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


def _stored_pixels(data: bytes | memoryview, header: ImageHeader) -> Tensor:
    if header.kind == "jpg":
        return decode_jpeg(bytearray(data))
    if header.kind == "webp" and not _needs_pillow(data):
        try:
            return torch.ops.image.decode_webp(torch.frombuffer(bytearray(data), dtype=torch.uint8), _RGB)
        except (RuntimeError, ValueError):
            pass  # Pillow decodes it, or reports clearly why it cannot
    if header.kind == "png" and bytes(data).rfind(_PNG_END) < 0:
        raise UndecodableImage("the png image cannot be decoded (it is truncated)")
    return _decode_by_pillow(data, header)


def _needs_pillow(data: bytes | memoryview) -> bool:
    """Whether a WebP is animated or has EXIF (extended format), which torchvision refuses or ignores."""
    return bytes(data[12:16]) == b"VP8X" and len(data) > 20 and bool(data[20] & (_WEBP_ANIMATED | _WEBP_EXIF))


@contextmanager
def opened_by_pillow(data: bytes | bytearray | memoryview, header: ImageHeader) -> Iterator[Image.Image]:
    """The image as Pillow opens it, not loaded yet and not turned, and its errors as ours.

    Pillow sees no metadata: it refuses images for what is wrong with those.

    Raises:
        UndecodableImage: Pillow raises anything, also in the body of the ``with`` statement.
    """
    picture = without_metadata(data, header.kind)
    try:
        with Image.open(io.BytesIO(picture), formats=("JPEG", "PNG", "WEBP", "GIF")) as opened:
            if opened.size != (header.width, header.height):  # before memory is taken for them
                raise _other_size(header, *opened.size)
            yield opened
    except (UndecodableImage, MemoryError):
        raise
    except Exception as error:  # it raises what its readers raise, of every kind
        raise UndecodableImage(f"the {header.kind} image cannot be decoded ({_one_line(error)})") from None


def _decode_by_pillow(data: bytes | bytearray | memoryview, header: ImageHeader) -> Tensor:
    """The pixels as they are stored: uint8 [3, H, W]."""
    with opened_by_pillow(data, header) as opened:
        opened.load()
        image: Image.Image = opened
        if image.mode.startswith("I"):  # 16 bits: Pillow's own conversion clips instead of scaling
            wide = np.asarray(image).astype(np.uint32)
            image = Image.fromarray((wide >> 8).clip(0, 255).astype(np.uint8))
        image.info.pop("transparency", None)  # of a palette Pillow warns that it is dropped, which is what we want
        pixels = np.array(image.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _other_size(header: ImageHeader, width: int, height: int) -> UndecodableImage:
    told = f"its header says {header.width} by {header.height} pixels, and its data {width} by {height}"
    return UndecodableImage(f"the {header.kind} image cannot be decoded ({told})")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
