"""LAMB, for large batches: Adam's direction, with the length of each layer's step tied to that of its weights.

You and others, *Large Batch Optimization for Deep Learning: Training BERT in 76 minutes* (ICLR 2020), algorithm 2, with
bias correction and decoupled weight decay; phi is the identity. Parameters of one dimension (norms, biases) take Adam's
step unscaled, decayed or not, as in the authors' published code; all others are adapted, decayed or not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["Lamb"]


class Lamb(torch.optim.Optimizer):
    """Update all tensors of a group together (``torch._foreach_*``), without waiting for the device.

    State of a parameter: ``step`` (float32 []), ``exp_avg`` and ``exp_avg_sq`` (as the parameter), all on its device.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update the parameters that have a gradient; returns the loss of ``closure``, if one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if parameters := [p for p in group["params"] if p.grad is not None]:
                self._update(group, parameters)
        return loss

    def _update(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        gradients = [p.grad for p in parameters if p.grad is not None]
        states = [self._state_of(p) for p in parameters]
        steps, means, squares = ([s[key] for s in states] for key in ("step", "exp_avg", "exp_avg_sq"))
        first, second = group["betas"]
        torch._foreach_add_(steps, 1.0)
        torch._foreach_lerp_(means, gradients, 1 - first)
        torch._foreach_mul_(squares, second)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - second)
        done = steps[0]  # the same for all: a parameter has a gradient in every step or in none
        roots = torch._foreach_div(squares, 1 - second**done)
        torch._foreach_sqrt_(roots)
        torch._foreach_add_(roots, group["eps"])
        moves = torch._foreach_div(means, 1 - first**done)
        torch._foreach_div_(moves, roots)
        if group["weight_decay"]:
            torch._foreach_add_(moves, parameters, alpha=group["weight_decay"])
        layers = [(p, move) for p, move in zip(parameters, moves, strict=True) if p.ndim > 1]
        if layers:
            weights, layer_moves = [p for p, _ in layers], [move for _, move in layers]
            lengths, sizes = torch._foreach_norm(weights), torch._foreach_norm(layer_moves)
            ratios = [torch.where((n > 0) & (m > 0), n / m, 1.0) for n, m in zip(lengths, sizes, strict=True)]
            torch._foreach_mul_(layer_moves, ratios)
        torch._foreach_add_(parameters, moves, alpha=-group["lr"])

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return state
