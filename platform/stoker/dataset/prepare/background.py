"""The colour that transparent images are composited onto: its names, and the arithmetic."""

from __future__ import annotations

import re

import numpy as np
import torch
from PIL import ImageColor
from torch import Tensor

from stoker.errors import DatasetError

__all__ = ["colour_code", "composite"]

_CODE = re.compile(r"#[0-9a-f]{6}")


def colour_code(name: str) -> str:
    """The code #rrggbb, in lower case, of a colour: one of CSS by name, or its code.

    Raises:
        DatasetError: ``name`` is neither.
    """
    wanted = name.strip().lower()
    if _CODE.fullmatch(wanted):
        return wanted
    if wanted not in ImageColor.colormap:
        raise DatasetError(f"--background {name!r}: neither a colour of CSS by name, such as white, nor #rrggbb")
    red, green, blue = ImageColor.getrgb(wanted)[:3]
    return f"#{red:02x}{green:02x}{blue:02x}"


def composite(pixels: Tensor, opacity: Tensor, background: str) -> Tensor:
    """``pixels`` over a plain background: uint8 [3, H, W].

    Each value is ``(pixel * opacity + background * (255 - opacity)) / 255``, rounded; opaque pixels keep theirs.
    ``pixels`` are uint8 [3, H, W], not multiplied by ``opacity`` (uint8 [H, W]), as PNG, WebP and GIF have them;
    ``background`` is #rrggbb. Done on the values as they are stored, which follow sRGB's curve, as browsers do.
    """
    over = opacity.numpy().astype(np.uint16)
    under = 255 - over
    found = np.empty(pixels.shape, np.uint8)
    for channel, value, out in zip(pixels.numpy(), bytes.fromhex(background[1:]), found, strict=True):
        out[:] = (channel * over + value * under + 127) // 255  # at most 65,152
    return torch.from_numpy(found)
