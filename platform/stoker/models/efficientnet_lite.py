"""EfficientNet-Lite: EfficientNet for phones, without squeeze-and-excitation, and with ReLU6.

The network is Tan and Le's EfficientNet-B0 (*EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks*,
ICML 2019, table 1) and its compound scaling. What Lite changes is Google's (*EfficientNet-Lite*, in TensorFlow's models
for TPUs, 2020): no squeeze-and-excitation, ReLU6 for swish, and stem, head, first and last stage are not scaled, so
that the larger ones grow less. Published sizes: 4.65, 5.42, 6.09, 8.20 and 13.01 million weights.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import StochasticDepth

__all__ = [
    "EfficientNetLite",
    "SamePaddedConv2d",
    "efficientnet_lite0",
    "efficientnet_lite1",
    "efficientnet_lite2",
    "efficientnet_lite3",
    "efficientnet_lite4",
    "our_names",
]


@dataclass(frozen=True)
class _Stage:
    """Blocks of one size: ``kernel`` and ``stride`` in pixels, ``expand`` times the channels inside a block."""

    blocks: int
    kernel: int
    stride: int
    expand: int
    channels: int


_STAGES = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192),
    _Stage(1, 3, 1, 6, 320),
)
_STEM, _HEAD = 32, 1280
_CHANNEL_MULTIPLE = 8

_SCALES = {"0": (1.0, 1.0, 0.2), "1": (1.0, 1.1, 0.2), "2": (1.1, 1.2, 0.3), "3": (1.2, 1.4, 0.3), "4": (1.4, 1.8, 0.3)}
"""by size: factor of the channels, of the blocks, and the dropout before the head, as published"""


class SamePaddedConv2d(nn.Conv2d):
    """A convolution whose output has ceil(n / stride) pixels of n: TensorFlow's padding "SAME".

    The padding depends on the side of the input; where it is odd, the extra row and column are below and right.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        (top, bottom), (left, right) = (
            _padding(side, kernel, stride)
            for side, kernel, stride in zip(input.shape[-2:], self.kernel_size, self.stride, strict=True)
        )
        return super().forward(functional.pad(input, (left, right, top, bottom)))


class EfficientNetLite(nn.Module):
    """Float32 images [n, 3, H, W] to logits [n, num_classes].

    ``width`` and ``depth`` are the factors of channels and blocks. ``dropout`` is the probability before the head,
    ``stochastic_depth_prob`` the one of the last block; the first one's is 0, and in between it is linear.
    """

    def __init__(
        self, num_classes: int, *, width: float, depth: float, dropout: float, stochastic_depth_prob: float = 0.2
    ) -> None:
        super().__init__()
        repeats = [_repeats(number, depth) for number in range(len(_STAGES))]
        rates = (stochastic_depth_prob * block / sum(repeats) for block in range(sum(repeats)))
        channels = _STEM
        self.stem = _Unit(3, channels, 3, stride=2)
        self.stages = nn.Sequential()
        for stage, blocks in zip(_STAGES, repeats, strict=True):
            outputs = _rounded(stage.channels * width)
            made = nn.Sequential()
            for block in range(blocks):
                stride = stage.stride if block == 0 else 1
                made.append(_Block(channels, outputs, stage, stride, drop=next(rates)))
                channels = outputs
            self.stages.append(made)
        self.last = _Unit(channels, _HEAD, 1)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(_HEAD, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.last(self.stages(self.stem(images)))
        logits: Tensor = self.head(self.dropout(features.mean(dim=(2, 3))))
        return logits


def _sized(size: str, num_classes: int, dropout: float | None = None, **options: float) -> EfficientNetLite:
    width, depth, published = _SCALES[size]
    rate = published if dropout is None else dropout
    return EfficientNetLite(num_classes, width=width, depth=depth, dropout=rate, **options)


efficientnet_lite0 = partial(_sized, "0")
efficientnet_lite1 = partial(_sized, "1")
efficientnet_lite2 = partial(_sized, "2")
efficientnet_lite3 = partial(_sized, "3")
efficientnet_lite4 = partial(_sized, "4")


def our_names(model: str, names: Iterable[str]) -> dict[str, str]:
    """Names of tensors of ``model`` in files of other implementations, mapped to ours; others are left out.

    Known are timm's (``blocks.1.0.conv_pw.weight``), whose tf_efficientnet_lite0 to 4 are this network, and those of
    ports of the TensorFlow code that number the blocks through (``_blocks.1._expand_conv.weight``). timm's
    efficientnet_lite0 without ``tf_`` has the same names and shapes, but pads alike on all sides and has another
    epsilon, which no file shows: its weights compute something else here.
    """
    depth = _SCALES[model[-1]][1]
    places = [(stage, block) for stage in range(len(_STAGES)) for block in range(_repeats(stage, depth))]
    found = {}
    for name in names:
        if match := _THROUGH.fullmatch(name):
            place = places[int(match[1])] if int(match[1]) < len(places) else None
            part = _PORTED.get(match[2])
        elif match := _STAGED.fullmatch(name):
            place = int(match[1]), int(match[2])
            part = (_TIMM if place[0] else _TIMM_FIRST).get(match[3])
        else:
            start, _, end = name.rpartition(".")
            if start in _OUTSIDE:
                found[name] = f"{_OUTSIDE[start]}.{end}"
            continue
        if place is not None and part is not None:
            found[name] = f"stages.{place[0]}.{place[1]}.{part}.{match[match.re.groups]}"
    return found


_THROUGH = re.compile(r"_blocks\.(\d+)\.(\w+)\.(\w+)")
_STAGED = re.compile(r"blocks\.(\d+)\.(\d+)\.(\w+)\.(\w+)")
_PORTED = {
    "_expand_conv": "expand.0",
    "_bn0": "expand.1",
    "_depthwise_conv": "depthwise.0",
    "_bn1": "depthwise.1",
    "_project_conv": "project.0",
    "_bn2": "project.1",
}
_TIMM = {
    "conv_pw": "expand.0",
    "bn1": "expand.1",
    "conv_dw": "depthwise.0",
    "bn2": "depthwise.1",
    "conv_pwl": "project.0",
    "bn3": "project.1",
}
_TIMM_FIRST = {"conv_dw": "depthwise.0", "bn1": "depthwise.1", "conv_pw": "project.0", "bn2": "project.1"}
"""its first stage does not expand, and its names count on"""
_OUTSIDE = {
    "_conv_stem": "stem.0",
    "_bn0": "stem.1",
    "_conv_head": "last.0",
    "_bn1": "last.1",
    "_fc": "head",
    "conv_stem": "stem.0",
    "bn1": "stem.1",
    "conv_head": "last.0",
    "bn2": "last.1",
    "classifier": "head",
}


class _Block(nn.Module):
    """An inverted residual: expand, filter each channel, project (Sandler and others, *MobileNetV2*, CVPR 2018)."""

    def __init__(self, inputs: int, outputs: int, stage: _Stage, stride: int, *, drop: float) -> None:
        super().__init__()
        inside = inputs * stage.expand
        self.expand = _Unit(inputs, inside, 1) if stage.expand > 1 else nn.Identity()
        self.depthwise = _Unit(inside, inside, stage.kernel, stride=stride, groups=inside)
        self.project = _Unit(inside, outputs, 1, is_linear=True)
        self.drop = StochasticDepth(drop, "row") if stride == 1 and inputs == outputs else None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return y if self.drop is None else x + self.drop(y)


class _Unit(nn.Sequential):
    """A convolution, its batch norm and, unless ``is_linear``, ReLU6."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1, is_linear: bool = False
    ) -> None:
        if stride > 1:
            convolution: nn.Conv2d = SamePaddedConv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
        else:
            convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)
        nn.init.normal_(convolution.weight, 0.0, math.sqrt(2.0 / (kernel * kernel * (outputs // groups))))
        norm = nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.01)
        super().__init__(convolution, norm, *(() if is_linear else (nn.ReLU6(inplace=True),)))


def _repeats(stage: int, depth: float) -> int:
    is_inner = 0 < stage < len(_STAGES) - 1
    return math.ceil(_STAGES[stage].blocks * depth) if is_inner else _STAGES[stage].blocks


def _rounded(channels: float) -> int:
    """The nearest multiple of 8 that is not more than a tenth below ``channels``."""
    nearest = max(_CHANNEL_MULTIPLE, int(channels + _CHANNEL_MULTIPLE / 2) // _CHANNEL_MULTIPLE * _CHANNEL_MULTIPLE)
    return nearest + _CHANNEL_MULTIPLE if nearest < 0.9 * channels else nearest


def _padding(side: int, kernel: int, stride: int) -> tuple[int, int]:
    total = max(0, (math.ceil(side / stride) - 1) * stride + kernel - side)
    return total // 2, total - total // 2
