"""EfficientNet-Lite0 as the package efficientnet-lite-pytorch computes it."""

from __future__ import annotations

from pathlib import Path

from torch import nn

__all__ = ["reference"]


def reference(weights: Path) -> nn.Module:
    """The network of the package ``efficientnet-lite-pytorch`` with its companion's weights."""
    from efficientnet_lite_pytorch import EfficientNet

    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(weights)).eval()
