"""Decode how opaque the pixels of an image are, which ``decode`` leaves out.

Pillow decodes alpha channels, palettes with alpha and GIF's transparent colour. The colour that a PNG without a palette
names as transparent (tRNS) is compared here with the samples as the file has them: Pillow 13.0.0 compares it with
samples that it has scaled to 8 bits, and so misses it in grey of 2 and 4 bits and finds it too often in 16.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from stoker.dataset.decode.crop import turned
from stoker.dataset.decode.image import image_header, opened_by_pillow
from stoker.dataset.undecodable import UndecodableImage

__all__ = ["decode_opacity"]

_OPAQUE = 255
_DEPTH, _COLOURS = 24, 25
"""offsets in a PNG of its bits a sample, and of its kind of colours (PNG 3rd edition, section 11.2.1)"""
_GREY, _RGB = 0, 2


def decode_opacity(data: bytes | memoryview) -> Tensor | None:
    """The opacity of each pixel of an image that ``decode`` takes: uint8 [H, W], upright, 0 (transparent) to 255.

    None if every pixel is opaque. An image without an alpha channel or transparent colour is not decoded for it, and 16
    bits a sample become 8.

    Raises:
        UndecodableImage: see :func:`stoker.dataset.decode.decode`; or it is a PNG of 16 bits a channel that names a
            transparent RGB colour, which Pillow does not let compare.
    """
    header = image_header(data)
    if header.kind == "jpg":
        return None
    with opened_by_pillow(data, header) as image:
        if not image.has_transparency_data:
            return None
        if header.kind == "png" and data[_COLOURS] in {_GREY, _RGB}:
            stored = _by_colour(image, data[_DEPTH])
        else:
            stored = np.array(image.convert("RGBA").getchannel("A"))
    if stored.min() == _OPAQUE:
        return None
    return turned(torch.from_numpy(stored), header.orientation).contiguous()


def _by_colour(image: Image.Image, depth: int) -> NDArray[np.uint8]:
    """0 where a PNG has the colour that it names as transparent, 255 elsewhere: uint8 [H, W]."""
    named, largest = np.array(image.info["transparency"]), 2**depth - 1
    pixels = np.asarray(image)
    if pixels.ndim == 3:
        if depth > 8:
            raise UndecodableImage(
                "the png image has 16 bits a channel and names a transparent colour, which cannot be found in it; save "
                "it with an alpha channel or with 8 bits"
            )
        is_named = (pixels == (named & largest)).all(2)
    elif image.mode == "1":
        is_named = pixels == (named > 0)
    else:  # fewer than 8 bits are scaled to 8
        is_named = pixels == (named & largest) * max(1, _OPAQUE // largest)
    return np.where(is_named, np.uint8(0), np.uint8(_OPAQUE))
