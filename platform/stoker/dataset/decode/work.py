"""The work of decoding an image and resizing it, by its header alone: one cost model for whoever bounds it."""

from __future__ import annotations

from stoker.dataset.format.image_header import ImageHeader

__all__ = ["decoding_work"]

_BYTE = 2
_SCAN = 0.15


def decoding_work(header: ImageHeader, length: int, *, image_size: int, resize: int) -> int:
    """Work of ``evaluation_image`` for an image of ``length`` bytes, in pixels of an ordinary JPEG."""
    pixels = header.held_pixels
    passes = 1 + _SCAN * (header.scans - 1)
    return int(pixels * passes + _BYTE * length + resize**2)
