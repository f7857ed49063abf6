"""Blur before striding, so that shifting the image by a pixel shifts the features and does not change them.

Zhang, *Making Convolutional Networks Shift-Invariant Again* (ICML 2019). Here the input of the strided convolution is
blurred, which costs a fraction of blurring its unstrided output; FFCV's ImageNet configurations do the same.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["BlurredConv2d", "blur_before_strides"]

_LEAST_CHANNELS = 16
"""a first convolution over the three channels of an image is not blurred"""


class BlurredConv2d(nn.Conv2d):
    """A convolution that first blurs its input with the binomial filter [1 2 1] in both directions, zero-padded.

    Its weights have the names and shapes of those of the convolution that it replaces.
    """

    binomial: Tensor

    @classmethod
    def of(cls, plain: nn.Conv2d) -> BlurredConv2d:
        """Blur the input of the convolution ``plain``, whose weights are shared."""
        blurred = cls(
            plain.in_channels,
            plain.out_channels,
            _pair(plain.kernel_size),
            _pair(plain.stride),
            plain.padding if isinstance(plain.padding, str) else _pair(plain.padding),
            _pair(plain.dilation),
            plain.groups,
            plain.bias is not None,
            plain.padding_mode,
            device="meta",
        )
        blurred.weight, blurred.bias = plain.weight, plain.bias
        line = torch.tensor([0.25, 0.5, 0.25], device=plain.weight.device)
        square = (line[:, None] * line[None, :]).expand(plain.in_channels, 1, 3, 3)
        blurred.register_buffer("binomial", square.contiguous(), persistent=False)
        return blurred

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        soft = functional.conv2d(input, self.binomial.to(input.dtype), padding=1, groups=self.in_channels)
        return super().forward(soft)


def blur_before_strides(model: nn.Module) -> nn.Module:
    """Replace each strided convolution of ``model`` with 16 or more input channels by its blurred form; returns it."""
    for name, child in model.named_children():
        if type(child) is nn.Conv2d and max(_pair(child.stride)) > 1 and child.in_channels >= _LEAST_CHANNELS:
            setattr(model, name, BlurredConv2d.of(child))
        else:
            blur_before_strides(child)
    return model


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    return values[0], values[1]
