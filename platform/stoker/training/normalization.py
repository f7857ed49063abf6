"""Batch-norm running statistics that do not depend on which rank saw which micro-batch.

A batch-norm layer's batch statistics are those of a micro-batch. Its running statistics move once a step, by the mean
of the statistics of all micro-batches of the global batch, on all ranks alike. To that end the layers run with
momentum 1 during a step, so that after a micro-batch their buffers hold just that micro-batch's statistics.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["RunningStatistics"]

_Norm = nn.modules.batchnorm._BatchNorm


class RunningStatistics:
    """Keeps the running statistics of ``model``'s batch-norm layers over steps of several micro-batches."""

    def __init__(self, model: nn.Module) -> None:
        self._norms = [m for m in model.modules() if isinstance(m, _Norm) and m.track_running_stats]
        self._momenta: list[float] = []
        for norm in self._norms:
            self._momenta.extend([0.1 if norm.momentum is None else norm.momentum] * 2)
            norm.momentum = 1.0
        self._kept: list[Tensor] = []
        self._sums: list[Tensor] = []
        self._steps: list[Tensor] = []

    @property
    def _buffers(self) -> list[Tensor]:
        return [buffer for n in self._norms for buffer in (n.running_mean, n.running_var) if buffer is not None]

    @torch.no_grad()
    def begin_step(self) -> None:
        """Call before the first micro-batch of a step."""
        self._kept = [buffer.clone() for buffer in self._buffers]
        self._sums = [torch.zeros_like(buffer) for buffer in self._kept]
        self._steps = [n.num_batches_tracked.clone() for n in self._norms if n.num_batches_tracked is not None]

    @torch.no_grad()
    def add_micro_batch(self) -> None:
        """Call after the forward pass of each micro-batch that counts."""
        if self._sums:
            torch._foreach_add_(self._sums, self._buffers)

    @torch.no_grad()
    def end_step(self, micro_batches: int) -> None:
        """Call on all ranks after the last micro-batch; ``micro_batches`` counted, over all ranks."""
        if not self._sums:
            return
        flat = torch.cat([s.flatten() for s in self._sums])
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(flat)
        flat /= micro_batches
        means = torch.split(flat, [s.numel() for s in self._sums])
        for buffer, kept, mean, momentum in zip(self._buffers, self._kept, means, self._momenta, strict=True):
            torch.lerp(kept, mean.view_as(kept), momentum, out=buffer)
        for norm, steps in zip(self._norms, self._steps, strict=True):
            norm.num_batches_tracked = steps + 1
