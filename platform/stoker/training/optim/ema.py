"""The exponential moving average of a model's weights (Polyak and Juditsky, 1992; warm-up as in TensorFlow's)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

__all__ = ["MovingAverage"]


class MovingAverage:
    """``model`` is the averaged copy: evaluate it, store it, publish it.

    Each number depends on its own weight alone, in no order, so the average is the same bits where the weights are.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self._decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards ``model`` after ``step`` (from 0); batch-norm statistics are averaged too."""
        weight = 1 - min(self._decay, (1 + step) / (10 + step))
        mine, other = self._split(self.model), self._split(model)
        torch._foreach_lerp_(mine[0], other[0], weight)
        if mine[1]:
            torch._foreach_copy_(mine[1], other[1])

    @staticmethod
    def _split(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        state = list(model.state_dict().values())
        return [t for t in state if t.is_floating_point()], [t for t in state if not t.is_floating_point()]
