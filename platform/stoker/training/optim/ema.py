"""Exponential moving average of a model's weights (Polyak and Juditsky, 1992; warm-up as in TensorFlow's)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

__all__ = ["MovingAverage"]


class MovingAverage:
    """An averaged copy of a model, in ``model``: the one to evaluate, store and publish.

    Each value depends on its own weight alone, so where the weights are the same bits, the average is too.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self._decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards ``model`` after ``step`` (from 0); batch-norm statistics are averaged too."""
        weight = 1 - min(self._decay, (1 + step) / (10 + step))
        own, other = self._split(self.model), self._split(model)
        torch._foreach_lerp_(own[0], other[0], weight)
        if own[1]:
            torch._foreach_copy_(own[1], other[1])

    @staticmethod
    def _split(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        state = list(model.state_dict().values())
        return [t for t in state if t.is_floating_point()], [t for t in state if not t.is_floating_point()]
