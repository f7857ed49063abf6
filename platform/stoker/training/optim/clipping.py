"""Clip the gradient's global norm without making the host wait for the device.

Pascanu, Mikolov and Bengio, *On the difficulty of training recurrent neural networks* (ICML 2013).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["clip_gradients"]


@torch.no_grad()
def clip_gradients(gradients: Sequence[Tensor], limit: float, *, in_fixed_order: bool) -> Tensor:
    """Scale ``gradients`` in place so that the norm of all together is at most ``limit``; returns the norm before.

    All ranks hold the same gradients. ``in_fixed_order`` sums their squares from a copy in the parameters' order, so
    that the norm does not depend on where a rank's buckets are in memory; it costs that copy.
    """
    if in_fixed_order:
        norm = torch.linalg.vector_norm(torch.cat([gradient.reshape(-1) for gradient in gradients]))
    else:
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))  # type: ignore[arg-type]
    torch._foreach_mul_(gradients, torch.clamp(limit / (norm + 1e-6), max=1.0))  # type: ignore[call-overload]
    return norm
