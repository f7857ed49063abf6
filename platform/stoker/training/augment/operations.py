"""The operations of RandAugment and TrivialAugment on a batch of images, each with a strength of its own.

A batch is grouped by operation on the host, which knows every draw, and each group is one call on the device: no
Python loop over pixels or images, and no wait for the device. What an image becomes depends on its operation and
strength alone; sums over an image are of whole numbers, so that they do not depend on an order. The results are those
of ``torchvision.transforms.v2.functional`` for the same operation and strength (rounding aside, which a test bounds).

A new operation is a row of :data:`OPERATIONS` and its function. It is drawn once a policy of :data:`POLICIES` names it;
adding it to a published policy would change what every run with that policy draws, so it gets a policy of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.v2 import functional as transform

__all__ = ["OPERATIONS", "POLICIES", "Operation", "apply_operations", "to_device"]

_PARAMETERS = 6
"""numbers by which an image's operation reaches the device"""


@dataclass(frozen=True)
class Operation:
    """One operation. Those with the same ``apply`` are one call for all of their images."""

    name: str
    apply: Callable[[Tensor, Tensor], Tensor]
    """images (uint8 [n, 3, H, W]) and parameters (float32 [n, 6]) to images"""
    strength: Callable[[float, int, int, bool], float]
    """fraction of the range (0 to 1), height, width in pixels, whether the wide space is used, to the strength"""
    is_signed: bool = False
    """whether a draw decides the strength's sign"""
    parameters: Callable[[float, int, int], list[float]] = lambda strength, height, width: [1 + strength]
    """strength, height, width in pixels, to at most 6 numbers (the rest are 0); by default a factor"""


def apply_operations(images: Tensor, kinds: NDArray[np.int64], strengths: NDArray[np.float64]) -> Tensor:
    """Apply operation ``OPERATIONS[kinds[i]]`` to image i of ``images`` (uint8 [n, 3, H, W]); returns a new tensor.

    ``strengths`` (float64 [n]): of a shear the tangent of its angle, of a translation whole pixels, of a rotation
    degrees counter-clockwise, of brightness to sharpness the change of the factor (-1 to 1; 0 changes nothing), of
    posterize the bits that are kept, of solarize the threshold as a fraction of 255. The rest take none.
    """
    result = images.clone()
    calls = np.array(_CALL_OF)[kinds]
    order = np.argsort(calls, kind="stable")
    height, width = images.shape[-2:]
    table = np.zeros((len(order), _PARAMETERS))
    for row, i in enumerate(order.tolist()):
        numbers = OPERATIONS[int(kinds[i])].parameters(float(strengths[i]), height, width)
        table[row, : len(numbers)] = numbers
    places, parameters = to_device(order, images.device), to_device(table.astype(np.float32), images.device)
    first = 0
    for call, count in zip(*np.unique(calls, return_counts=True), strict=True):
        if (apply := _CALLS[call]) is not _identity:
            here = places[first : first + count]
            result.index_copy_(0, here, apply(images.index_select(0, here), parameters[first : first + count]))
        first += int(count)
    return result


def to_device(values: NDArray[np.generic], device: torch.device) -> Tensor:
    """Copy ``values`` to ``device`` without making the host wait."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _identity(images: Tensor, _: Tensor) -> Tensor:
    return images


def _geometric(images: Tensor, parameters: Tensor) -> Tensor:
    """Sample each pixel of the result from the image at its place under the inverse matrix; bilinear, black outside.

    ``parameters`` are that affine matrix by rows, around the image's centre, in pixels.
    """
    height, width = images.shape[-2:]
    x = torch.arange(width, device=images.device) + (1 - width) * 0.5
    y = (torch.arange(height, device=images.device) + (1 - height) * 0.5)[:, None]
    matrix = parameters.view(-1, 2, 3, 1, 1)
    across = (x * matrix[:, 0, 0] + y * matrix[:, 0, 1] + matrix[:, 0, 2]) / (0.5 * width)
    down = (x * matrix[:, 1, 0] + y * matrix[:, 1, 1] + matrix[:, 1, 2]) / (0.5 * height)
    grid = torch.stack((across, down), dim=-1)
    sampled = functional.grid_sample(images.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return sampled.round_().to(torch.uint8)


def _rotation(degrees: float, height: int, width: int) -> list[float]:
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return [cosine, -sine, 0, sine, cosine, 0]


def _brightness(images: Tensor, parameters: Tensor) -> Tensor:
    return images.mul(_first(parameters)).clamp_(0, 255).to(torch.uint8)


def _color(images: Tensor, parameters: Tensor) -> Tensor:
    return _blend(images.float(), _grey(images), _first(parameters))


def _contrast(images: Tensor, parameters: Tensor) -> Tensor:
    mean = _grey(images).mean(dim=(1, 2, 3), keepdim=True, dtype=torch.float64).float()
    return _blend(images.float(), mean, _first(parameters))


def _sharpness(images: Tensor, parameters: Tensor) -> Tensor:
    """Blend with the mean of a pixel (five times) and its eight neighbours; the edge stays as it is."""
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
    """Stretch each channel to 0 to 255, unless it has one value only."""
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


def _up_to(rand: float, wide: float) -> Callable[[float, int, int, bool], float]:
    """From 0 up to ``rand`` (RandAugment) or ``wide`` (TrivialAugment's wide space)."""
    return lambda fraction, height, width, is_wide: fraction * (wide if is_wide else rand)


OPERATIONS = (
    Operation("identity", _identity, _up_to(0, 0)),
    Operation("shear_x", _geometric, _up_to(0.3, 0.99), True, lambda s, h, w: [1, s, s * h / 2, 0, 1, 0]),
    Operation("shear_y", _geometric, _up_to(0.3, 0.99), True, lambda s, h, w: [1, 0, 0, s, 1, s * w / 2]),
    Operation("translate_x", _geometric, lambda f, h, w, is_wide: f * (32.0 if is_wide else 150.0 / 331.0 * w), True,
              lambda s, h, w: [1, 0, -int(s), 0, 1, 0]),
    Operation("translate_y", _geometric, lambda f, h, w, is_wide: f * (32.0 if is_wide else 150.0 / 331.0 * h), True,
              lambda s, h, w: [1, 0, 0, 0, 1, -int(s)]),
    Operation("rotate", _geometric, _up_to(30.0, 135.0), True, _rotation),
    Operation("brightness", _brightness, _up_to(0.9, 0.99), True),
    Operation("color", _color, _up_to(0.9, 0.99), True),
    Operation("contrast", _contrast, _up_to(0.9, 0.99), True),
    Operation("sharpness", _sharpness, _up_to(0.9, 0.99), True),
    Operation("posterize", _posterize, lambda f, h, w, is_wide: 8 - round(f * (6 if is_wide else 4)),
              parameters=lambda s, h, w: [256 - 2 ** (8 - int(s))]),
    Operation("solarize", _solarize, lambda f, h, w, is_wide: 1 - f, parameters=lambda s, h, w: [s * 255]),
    Operation("auto_contrast", _auto_contrast, _up_to(0, 0)),
    Operation("equalize", _equalize, _up_to(0, 0)),
)  # fmt: skip

_PUBLISHED = (
    "identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "color", "contrast",
    "sharpness", "posterize", "solarize", "auto_contrast", "equalize",
)  # fmt: skip

POLICIES = {"rand_augment": _PUBLISHED, "trivial_augment_wide": _PUBLISHED}
"""by the recipe's ``augmentation.policy``: the operations that it draws from, in the order of the draws"""

_CALLS = list(dict.fromkeys(operation.apply for operation in OPERATIONS))
_CALL_OF = [_CALLS.index(operation.apply) for operation in OPERATIONS]
