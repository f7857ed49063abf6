"""Blur before striding, so that a shift of the image by a pixel shifts the features and does not change them.

Zhang, *Making Convolutional Networks Shift-Invariant Again* (ICML 2019). Here the blur stands before the strided
convolution and that keeps its stride, which costs a fraction of blurring a convolution's unstrided output; FFCV's
ImageNet configurations do the same.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["BlurredConv2d", "blur_before_strides"]

_LEAST_CHANNELS = 16
"""a first convolution over an image's three channels is left alone"""


class BlurredConv2d(nn.Conv2d):
    """A convolution that first blurs its input by the binomial filter [1 2 1] in both directions, edges padded by 0.

    Names and shapes of its weights are those of the convolution that it takes the place of.
    """

    binomial: Tensor

    @classmethod
    def of(cls, plain: nn.Conv2d) -> BlurredConv2d:
        """The convolution ``plain``, sharing its weights, with a blur before it."""
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
    """Replace in ``model`` each strided convolution of 16 input channels and more by its blurred form; returns it."""
    for name, child in model.named_children():
        if type(child) is nn.Conv2d and max(_pair(child.stride)) > 1 and child.in_channels >= _LEAST_CHANNELS:
            setattr(model, name, BlurredConv2d.of(child))
        else:
            blur_before_strides(child)
    return model


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    return values[0], values[1]
