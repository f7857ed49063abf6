"""Weights of the classes in the loss, from how many training samples each has (the recipe's ``loss.class_weights``).

``balanced`` weighs class c by N / (C n_c), where n_c of the split's N samples are of class c and C classes have any:
all of these count the same in the loss of an epoch, and the mean weight of its samples is 1, so that a learning rate
keeps its meaning (after King and Zeng, Logistic Regression in Rare Events Data, 2001; scikit-learn's
``class_weight="balanced"``). A class without a training sample has the weight 0: smoothing, the only thing that could
make it a target, gives it nothing either.

The step divides the weighted sum by the number of samples and not by that of weights, which would be another number
in each global batch. Counts are integers that the ranks add up, and a weight is one division in float64, rounded to
float32: the same bits on any number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from stoker.dataset.label_counts import LabelCounts

__all__ = ["balanced_weights", "described", "samples_by_class"]

_NAMED = 5
"""classes that a line names at most"""
_LONGEST = 40
_LARGE = 100.0
"""a weight from which on the log warns: docs/how-to/train.md says of what"""


def samples_by_class(counts: Iterable[LabelCounts], classes: int, device: torch.device) -> Tensor:
    """Add up this rank's ``counts`` (int64 [classes] each) and those of the other ranks: int64 [classes] on the CPU.

    All ranks must call it. Raises what iterating over ``counts`` raises.
    """
    total = torch.zeros(classes, dtype=torch.int64)
    for count in counts:
        total += torch.from_numpy(count)
    total = total.to(device)
    dist.all_reduce(total)
    return total.cpu()


def balanced_weights(samples: Tensor) -> Tensor:
    """The weight of each class: float32 [classes], 0 for a class without samples.

    ``samples`` are those of the training split by class: int64 [classes], with a sum above 0.
    """
    has_samples = samples > 0
    shares = (samples * has_samples.sum()).clamp(min=1).double()
    return torch.where(has_samples, samples.sum().double() / shares, 0.0).float()


def described(samples: Tensor, classes: Sequence[str]) -> str:
    """One line for the log: the lowest and the highest weight, and the classes without samples."""
    weights = balanced_weights(samples)
    seen = [label for label, count in enumerate(samples.tolist()) if count]
    unseen = [name for name, count in zip(classes, samples.tolist(), strict=True) if not count]
    shown = [_shown(name) for name in classes]
    ends = (max(seen, key=lambda label: int(samples[label])), min(seen, key=lambda label: int(samples[label])))
    low, high = (f"{float(weights[label]):.3g} ({shown[label]}: {int(samples[label]):,})" for label in ends)
    more = f" and {len(unseen) - _NAMED} more" if len(unseen) > _NAMED else ""
    none = f"; no training samples, weight 0: {', '.join(map(_shown, unseen[:_NAMED]))}{more}" if unseen else ""
    large = "; large ones cost bits with reproducible and range with float16" if float(weights.max()) > _LARGE else ""
    return f"class weights (samples) from {low} to {high}{none}{large}"


def _shown(name: str) -> str:
    """A class's name as a log line shows it: on one line, without control characters, at most 40 characters."""
    return (name if name.isprintable() else ascii(name))[:_LONGEST]
