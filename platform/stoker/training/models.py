"""Architectures by name: every classification model of torchvision, and a small one for 32 pixel inputs."""

from __future__ import annotations

import difflib
import inspect

import torch
from torch import Tensor, nn
from torchvision import models

from stoker.errors import ModelError

__all__ = ["build_model", "check_model", "model_names"]

_OWN = "digitsnet"


def model_names() -> list[str]:
    """Every name that :func:`build_model` knows, sorted."""
    return sorted([*models.list_models(module=models), _OWN])


def build_model(name: str, *, classes: int, drop_rate: float | None = None) -> nn.Module:
    """A model with fresh weights: float32 images [n, 3, H, W], normalised, to logits [n, classes].

    Weights are drawn from torch's generator: seed it first. Auxiliary heads (GoogLeNet, Inception) are left out.

    Raises:
        ModelError: no such model (the message names the nearest), or it takes no ``drop_rate``.
    """
    if name == _OWN:
        return DigitsNet(classes, drop_rate or 0.0)
    if name not in (known := model_names()):
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "any torchvision classification model will do"
        raise ModelError(f"model.name: no model is called {name!r}; {hint}")
    builder = models.get_model_builder(name)
    options: dict[str, object] = {"num_classes": classes}
    if drop_rate is not None:
        options["dropout"] = drop_rate
    if "googlenet" in name or "inception" in name:
        options |= {"aux_logits": False, "init_weights": True}
    try:
        return builder(weights=None, **options)
    except TypeError:
        takes = ", ".join(inspect.signature(builder).parameters)
        raise ModelError(f"model.drop_rate: {name} takes no dropout ({takes}); leave it out") from None


def check_model(name: str, *, classes: int, drop_rate: float | None = None) -> None:
    """Refuse what :func:`build_model` would refuse, without allocating the weights.

    Raises:
        ModelError: see :func:`build_model`.
    """
    try:
        with torch.device("meta"):
            build_model(name, classes=classes, drop_rate=drop_rate)
    except NotImplementedError:  # the RegNets compute their widths with tensors, which the meta device cannot read
        build_model(name, classes=classes, drop_rate=drop_rate)


class DigitsNet(nn.Module):
    """A residual network of 0.7 million weights for small pictures; a step on a CPU takes milliseconds."""

    def __init__(self, classes: int, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.stem = _unit(3, 32)
        self.stages = nn.Sequential(
            _Residual(32), nn.MaxPool2d(2), _unit(32, 64), _Residual(64), nn.MaxPool2d(2), _unit(64, 128),
            _Residual(128),
        )  # fmt: skip
        self.dropout = nn.Dropout(drop_rate)
        self.head = nn.Linear(128, classes)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.stages(self.stem(images))
        logits: Tensor = self.head(self.dropout(features.mean(dim=(2, 3))))
        return logits


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = _unit(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.body(x)
        return y


def _unit(inputs: int, outputs: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))
