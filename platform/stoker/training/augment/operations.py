"""The operations of RandAugment and TrivialAugment on a batch of images, each with a strength of its own.

A batch is grouped by operation on the host, which knows every draw, and each group is one call on the device: no
Python by pixel or by image, and no wait for the device. What an image becomes depends on its operation and strength
alone; sums over an image are of whole numbers, so that they have no order. The results are those of
``torchvision.transforms.v2.functional`` for the same operation and strength (rounding aside, which a test bounds).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.v2 import functional as transform

__all__ = ["OPERATIONS", "apply_operations", "on_device"]

OPERATIONS = (
    "identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "color", "contrast",
    "sharpness", "posterize", "solarize", "auto_contrast", "equalize",
)  # fmt: skip
"""In the order in which draws choose them."""


def apply_operations(images: Tensor, kinds: NDArray[np.int64], strengths: NDArray[np.float64]) -> Tensor:
    """``images`` (uint8 [n, 3, H, W]) with operation ``OPERATIONS[kinds[i]]`` done to image i; a new tensor.

    ``strengths`` (float64 [n]): of a shear the tangent of its angle, of a translation whole pixels, of a rotation
    degrees counter-clockwise, of brightness to sharpness the change of the factor (-1 to 1; 0 changes nothing), of
    posterize the bits that are kept, of solarize the threshold's share of 255. The rest take none.
    """
    result = images.clone()
    families = np.array([_FAMILY_OF[name] for name in OPERATIONS])[kinds]
    order = np.argsort(families, kind="stable")
    height, width = images.shape[-2:]
    table = np.stack([_parameters(int(kinds[i]), float(strengths[i]), height, width) for i in order.tolist()])
    places, parameters = on_device(order, images.device), on_device(table.astype(np.float32), images.device)
    first = 0
    for family, count in zip(*np.unique(families, return_counts=True), strict=True):
        if family != _UNCHANGED:
            here = places[first : first + count]
            changed = _FAMILIES[family](images.index_select(0, here), parameters[first : first + count])
            result.index_copy_(0, here, changed)
        first += int(count)
    return result


def on_device(values: NDArray[np.generic], device: torch.device) -> Tensor:
    """``values`` on ``device``, by a copy that the host does not wait for."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _parameters(kind: int, strength: float, height: int, width: int) -> list[float]:
    """Six numbers: of a geometric operation the inverse affine matrix by rows, around the image's centre; else one."""
    match OPERATIONS[kind]:
        case "shear_x":
            found = [1, strength, strength * height / 2, 0, 1, 0]
        case "shear_y":
            found = [1, 0, 0, strength, 1, strength * width / 2]
        case "translate_x":
            found = [1, 0, -int(strength), 0, 1, 0]
        case "translate_y":
            found = [1, 0, 0, 0, 1, -int(strength)]
        case "rotate":
            cosine, sine = math.cos(math.radians(strength)), math.sin(math.radians(strength))
            found = [cosine, -sine, 0, sine, cosine, 0]
        case "posterize":
            found = [256 - 2 ** (8 - int(strength)), 0, 0, 0, 0, 0]
        case "solarize":
            found = [strength * 255, 0, 0, 0, 0, 0]
        case _:
            found = [1 + strength, 0, 0, 0, 0, 0]
    return found


def _geometric(images: Tensor, parameters: Tensor) -> Tensor:
    """Where each pixel of the result lies in the image; bilinear, black outside."""
    height, width = images.shape[-2:]
    x = torch.arange(width, device=images.device) + (1 - width) * 0.5
    y = (torch.arange(height, device=images.device) + (1 - height) * 0.5)[:, None]
    matrix = parameters.view(-1, 2, 3, 1, 1)
    across = (x * matrix[:, 0, 0] + y * matrix[:, 0, 1] + matrix[:, 0, 2]) / (0.5 * width)
    down = (x * matrix[:, 1, 0] + y * matrix[:, 1, 1] + matrix[:, 1, 2]) / (0.5 * height)
    grid = torch.stack((across, down), dim=-1)
    sampled = functional.grid_sample(images.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return sampled.round_().to(torch.uint8)


def _brightness(images: Tensor, parameters: Tensor) -> Tensor:
    return images.mul(_first(parameters)).clamp_(0, 255).to(torch.uint8)


def _color(images: Tensor, parameters: Tensor) -> Tensor:
    return _blend(images.float(), _grey(images), _first(parameters))


def _contrast(images: Tensor, parameters: Tensor) -> Tensor:
    mean = _grey(images).mean(dim=(1, 2, 3), keepdim=True, dtype=torch.float64).float()
    return _blend(images.float(), mean, _first(parameters))


def _sharpness(images: Tensor, parameters: Tensor) -> Tensor:
    """Blended with the mean of a pixel (five times) and its eight neighbours; the edge stays as it is."""
    sharp = images.float()
    inner = sharp[..., 1:-1, 1:-1]
    if not inner.numel():
        return images
    rows = sharp[..., :-2, :] + sharp[..., 1:-1, :] + sharp[..., 2:, :]
    soft = sharp.clone()
    soft[..., 1:-1, 1:-1] = ((rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * inner) / 13).round_()
    return (sharp + (soft - sharp) * (1 - _first(parameters))).clamp_(0, 255).to(torch.uint8)


def _posterize(images: Tensor, parameters: Tensor) -> Tensor:
    return images & _first(parameters).to(torch.uint8)


def _solarize(images: Tensor, parameters: Tensor) -> Tensor:
    return torch.where(images >= _first(parameters), images.bitwise_not(), images)


def _auto_contrast(images: Tensor, _: Tensor) -> Tensor:
    """Each channel stretched to 0 to 255, unless it has one value only."""
    pixels = images.float()
    least, most = pixels.amin(dim=(2, 3), keepdim=True), pixels.amax(dim=(2, 3), keepdim=True)
    is_flat = least == most
    scale = torch.where(is_flat, 1.0, (most - least) * (1 / 255))
    return ((pixels - torch.where(is_flat, 0.0, least)) / scale).clamp_(0, 255).to(torch.uint8)


def _equalize(images: Tensor, _: Tensor) -> Tensor:
    equal: Tensor = transform.equalize_image(images)
    return equal


def _first(parameters: Tensor) -> Tensor:
    return parameters[:, :1, None, None]


def _grey(images: Tensor) -> Tensor:
    """Luminance (ITU-R BT.601), rounded down: float32 [n, 1, H, W]."""
    red, green, blue = images.unbind(dim=1)
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).floor_()[:, None]


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return (images * factor + other * (1 - factor)).clamp_(0, 255).to(torch.uint8)


_UNCHANGED = 0
_FAMILIES: list[Callable[[Tensor, Tensor], Tensor]] = [
    lambda images, _: images,
    _geometric,
    _brightness,
    _color,
    _contrast,
    _sharpness,
    _posterize,
    _solarize,
    _auto_contrast,
    _equalize,
]
_FAMILY_OF = {name: 0 if i == 0 else 1 if i <= 5 else i - 4 for i, name in enumerate(OPERATIONS)}
"""shears, translations and rotation are one family: a call with a matrix an image"""
