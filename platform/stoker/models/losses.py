"""What a model loses in training, auxiliary heads included.

GoogLeNet and Inception v3 have heads in mid-network whose losses are added at a discount while training, and which do
not take part in evaluation. GoogLeNet: 0.3 for each of two (Szegedy and others, *Going Deeper with Convolutions*, CVPR
2015, section 5). Inception v3: one, at 0.4, the weight that its authors' published training code gives it (TensorFlow
models, slim; Szegedy and others, *Rethinking the Inception Architecture*, CVPR 2016, section 4, name none).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["auxiliary_weight", "logits_of", "no_loss", "training_loss"]

_WEIGHTS = {"googlenet": 0.3, "inception_v3": 0.4}

Outputs = Tensor | tuple[Tensor | None, ...]
"""logits [n, classes], or these first and those of auxiliary heads after them"""


def auxiliary_weight(name: str) -> float:
    """How much an auxiliary head's loss of the model ``name`` counts beside the main one; 0 where there is none."""
    return _WEIGHTS.get(name, 0.0)


def logits_of(outputs: Outputs) -> Tensor:
    """The main head's logits: float32 [n, classes]."""
    return (outputs if isinstance(outputs, Tensor) else _main(outputs)).float()


def training_loss(
    outputs: Outputs, targets: Tensor, *, label_smoothing: float = 0.0, auxiliary_weight: float = 0.0
) -> Tensor:
    """The cross-entropy of ``outputs``, auxiliary heads weighted, summed over the samples: float32 [].

    ``outputs`` is whatever the model returned in training. ``targets`` are classes (int64 [n]) or a mixture of them
    for each sample (float32 [n, classes], rows sum to 1); smoothing mixes the uniform distribution into either.
    """
    total = _cross_entropy(logits_of(outputs), targets, label_smoothing)
    if not isinstance(outputs, Tensor) and auxiliary_weight:
        for other in outputs[1:]:
            if other is not None:
                total = total + auxiliary_weight * _cross_entropy(other.float(), targets, label_smoothing)
    return total


def no_loss(outputs: Outputs) -> Tensor:
    """0, float32 [], whose gradient is 0 in every parameter that ``outputs`` came from."""
    every = (outputs,) if isinstance(outputs, Tensor) else outputs
    return torch.stack([each.float().sum() for each in every if each is not None]).sum() * 0.0


def _main(outputs: tuple[Tensor | None, ...]) -> Tensor:
    first = outputs[0]
    if first is None:
        raise ValueError("a model must return logits first, not None")
    return first


def _cross_entropy(logits: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
    return functional.cross_entropy(logits, targets, reduction="sum", label_smoothing=label_smoothing)
