"""Batch-norm running statistics that do not depend on which rank processed which micro-batch.

A batch-norm layer's batch statistics are those of a micro-batch. Its running statistics move once a step, by the mean
of the statistics of all micro-batches of the global batch, on all ranks alike. To that end the layers run with
momentum 1 during a step, so that after a micro-batch their buffers hold just that micro-batch's statistics.

With ``exact`` that mean has no order: the micro-batches' statistics are kept until the largest of all ranks is known,
rounded to a grid below it that leaves float64 sums exact, and then summed (as in ``exact_sums``, with 52 bits).
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stoker.training.step.exact_sums import ZERO, exponents_of, largest

__all__ = ["RunningStatistics"]

_Norm = nn.modules.batchnorm._BatchNorm
_BITS = 52


class RunningStatistics:
    """Updates the running statistics of ``model``'s batch-norm layers once a step of several micro-batches."""

    def __init__(self, model: nn.Module, *, exact: bool = False) -> None:
        norms = [m for m in model.modules() if isinstance(m, _Norm) and m.track_running_stats]
        self._norms, self._exact = norms, exact
        buffers = self._buffers
        self._sizes = [buffer.numel() for buffer in buffers]
        device = buffers[0].device if buffers else torch.device("cpu")
        momenta = [0.1 if n.momentum is None else n.momentum for n in norms for _ in range(2)]
        sizes = torch.tensor(self._sizes, dtype=torch.int64)
        self._owners = torch.repeat_interleave(torch.arange(len(sizes)), sizes).to(device)
        self._momenta = torch.repeat_interleave(torch.tensor(momenta), sizes).to(device)
        for norm in norms:
            norm.momentum = 1.0
        self._kept = torch.zeros(0)
        self._steps: list[Tensor] = []
        self._seen: list[Tensor] = []

    @property
    def _buffers(self) -> list[Tensor]:
        return [buffer for n in self._norms for buffer in (n.running_mean, n.running_var) if buffer is not None]

    @torch.no_grad()
    def begin_step(self) -> None:
        """Call before the first micro-batch of a step."""
        if not self._norms:
            return
        self._kept = torch.cat(self._buffers)
        self._steps = [n.num_batches_tracked.clone() for n in self._norms if n.num_batches_tracked is not None]
        self._seen = []

    def begin_again(self) -> None:
        """Discard the micro-batches of the current step, which is repeated."""
        self._seen = []

    @torch.no_grad()
    def add_micro_batch(self) -> None:
        """Call after the forward pass of each micro-batch that counts."""
        if not self._norms:
            return
        seen = torch.cat(self._buffers)
        if self._exact or not self._seen:
            self._seen.append(seen)
        else:
            self._seen[0] += seen

    @torch.no_grad()
    def exponents(self) -> Tensor:
        """int32 [2 * layers], on the device: exponents of this rank's largest statistics, to be reduced by maximum."""
        if not self._seen:
            return torch.full((len(self._sizes),), ZERO, dtype=torch.int32, device=self._owners.device)
        sizes = torch.stack(self._seen).abs_().amax(dim=0)
        return exponents_of(largest(torch.split(sizes, self._sizes)))

    @torch.no_grad()
    def end_step(self, micro_batches: int, exponents: Tensor | None = None) -> None:
        """Call on all ranks after the last micro-batch; ``micro_batches`` is their number over all ranks.

        ``exponents`` is what :meth:`exponents` returned, as the maximum over all ranks; exact sums need it.
        """
        if not self._norms:
            return
        if self._exact:
            assert exponents is not None
            mean = self._exact_sum(micro_batches, exponents) / micro_batches
        else:
            total = self._seen[0] if self._seen else torch.zeros_like(self._kept)
            _add_ranks(total)
            mean = total / micro_batches
        moved = torch.lerp(self._kept, mean.to(self._kept.dtype), self._momenta)
        torch._foreach_copy_(self._buffers, list(torch.split(moved, self._sizes)))
        counters = [n.num_batches_tracked for n in self._norms if n.num_batches_tracked is not None]
        torch._foreach_copy_(counters, self._steps)
        torch._foreach_add_(counters, 1)
        self._seen = []

    def _exact_sum(self, micro_batches: int, exponents: Tensor) -> Tensor:
        """float64: in units of the grid every statistic is a whole number, and their sum stays below 2^52."""
        grid = torch.exp2((exponents - (_BITS - micro_batches.bit_length())).double())[self._owners]
        total = torch.zeros_like(grid)
        for seen in self._seen:
            total += (seen.double() / grid).round_()
        _add_ranks(total)
        return total * grid


def _add_ranks(total: Tensor) -> None:
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(total)
