"""The work of decoding an image and resizing it, told by its header: one cost model for whoever bounds it."""

from __future__ import annotations

from stoker.dataset.format.image_header import ImageHeader

__all__ = ["decoding_work", "is_resized_whole", "resized"]

_WHOLE_PIXELS = 2**23
"""of a whole resized image of which the crop is then cut: 25 MB"""
_ORDINARY_RATIO = 8
"""longer side by shorter side up to which an image is resized whole whatever its size"""

_FIXED, _RESIZED = 50_000, 0.2
_PIXEL = {"jpg": 1.0, "png": 12.0, "webp": 2.0, "gif": 8.0}
"""measured: 1.8 ns a pixel of a JPEG of 12 megapixels, 24 ns of a PNG, 4 and 8 of a WebP and a GIF"""
_SCAN, _SCANS = 0.05, 1.0
"""a pixel's for each scan of a progressive JPEG, and for that it has several at all"""
_BYTE, _BYTE_IN_SCANS, _BYTE_OF_WEBP = 4, 11, 25
_MOST_OF_WEBP = 25
"""a pixel's at most for its bytes: those of a lossless WebP, of which there are more, cost less each"""


def decoding_work(header: ImageHeader, length: int, *, resize: int) -> int:
    """Work of ``evaluation_image`` for an image of ``length`` bytes, in pixels of an ordinary large JPEG (some 2 ns).

    Within a factor of three of what was measured for JPEGs, within one of six for the others, which cost less.
    """
    pixels = header.held_pixels
    work = _FIXED + _PIXEL[header.kind] * pixels
    if header.scans > 1:
        work += (_SCANS + _SCAN * header.scans) * pixels + _BYTE_IN_SCANS * length
    elif header.kind == "jpg":
        work += _BYTE * length
    elif header.kind == "webp":
        work += min(_BYTE_OF_WEBP * length, _MOST_OF_WEBP * pixels)
    height, width = resized(header.height, header.width, resize)
    return int(work + _RESIZED * (height * width if is_resized_whole(height, width, resize) else resize**2))


def resized(height: int, width: int, resize: int) -> tuple[int, int]:
    """(height, width) of an image when its shorter side is ``resize``."""
    return (resize, int(resize * width / height)) if height <= width else (int(resize * height / width), resize)


def is_resized_whole(height: int, width: int, resize: int) -> bool:
    """Whether an image is resized to ``height`` by ``width`` before its crop is cut; else only what the crop needs."""
    return height * width <= max(_WHOLE_PIXELS, _ORDINARY_RATIO * resize**2)
