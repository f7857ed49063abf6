"""Training losses, auxiliary heads included.

GoogLeNet and Inception v3 have heads in mid-network whose losses are added at a discount in training, and which take
no part in evaluation. The weights and their sources are in :mod:`stoker.models.catalog`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from stoker.models.catalog import family_of

__all__ = ["auxiliary_weight", "logits_of", "no_loss", "training_loss"]

Outputs = Tensor | tuple[Tensor | None, ...]
"""logits [n, classes], or these first and those of auxiliary heads after them"""


def auxiliary_weight(name: str) -> float:
    """The weight of each auxiliary head's loss of the model ``name`` (the main head's is 1); 0 where it has none."""
    return family_of(name).auxiliary_weight


def logits_of(outputs: Outputs) -> Tensor:
    """The main head's logits: float32 [n, classes]."""
    return (outputs if isinstance(outputs, Tensor) else _main(outputs)).float()


def training_loss(
    outputs: Outputs,
    targets: Tensor,
    *,
    label_smoothing: float = 0.0,
    auxiliary_weight: float = 0.0,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of ``outputs``, auxiliary heads weighted, summed over the samples: float32 [].

    ``outputs`` is whatever the model returned in training. ``targets`` are classes (int64 [n]) or a mixture of them
    for each sample (float32 [n, classes], rows sum to 1); smoothing mixes the uniform distribution into either.

    ``class_weights`` (float32 [classes]) weigh the terms of a sample's loss, -sum over c of t_c w_c log p_c with the
    smoothed and mixed target t, in every head, as torch's ``cross_entropy`` does for classes and mixtures alike. The
    sum is not divided by the weights.
    """
    total = _cross_entropy(logits_of(outputs), targets, label_smoothing, class_weights)
    if not isinstance(outputs, Tensor) and auxiliary_weight:
        for other in outputs[1:]:
            if other is not None:
                total = total + auxiliary_weight * _cross_entropy(
                    other.float(), targets, label_smoothing, class_weights
                )
    return total


def no_loss(outputs: Outputs) -> Tensor:
    """Zero, float32 [], with a gradient of zero in every parameter that ``outputs`` depend on."""
    every = (outputs,) if isinstance(outputs, Tensor) else outputs
    return torch.stack([each.float().sum() for each in every if each is not None]).sum() * 0.0


def _main(outputs: tuple[Tensor | None, ...]) -> Tensor:
    first = outputs[0]
    if first is None:
        raise ValueError("a model must return logits first, not None")
    return first


def _cross_entropy(logits: Tensor, targets: Tensor, label_smoothing: float, weights: Tensor | None) -> Tensor:
    return functional.cross_entropy(logits, targets, weight=weights, reduction="sum", label_smoothing=label_smoothing)
