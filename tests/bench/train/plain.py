"""A training loop as PyTorch's guides write it: DistributedDataParallel, accumulation by ``no_sync``, SGD.

It has what costs nothing to ask for (channels_last, the fused optimiser, gradients as views of the buckets) and does
nothing that stoker's step adds: no running statistics per step, no keyed draws, no counting, no schedule.
"""

from __future__ import annotations

import contextlib

import torch
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from stoker.dataset import Batch

__all__ = ["PlainLoop"]

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class PlainLoop:
    """The loop on the same batches that stoker's step takes: uint8 images, normalised on the device."""

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        *,
        bfloat16: bool = False,
        smoothing: float = 0.0,
        compiles: bool = False,
    ) -> None:
        self._device, self._bfloat16, self._smoothing = device, bfloat16, smoothing
        placed = model.to(device).to(memory_format=torch.channels_last)
        self._model = DistributedDataParallel(
            torch.compile(placed) if compiles else placed,
            device_ids=[device] if device.type == "cuda" else None,
            gradient_as_bucket_view=True,
        )
        self._optimizer = torch.optim.SGD(
            model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4, nesterov=True, fused=True
        )
        self._mean = 255 * torch.tensor(_MEAN, device=device).view(1, 3, 1, 1)
        self._std = 255 * torch.tensor(_STD, device=device).view(1, 3, 1, 1)

    def step(self, batches: list[Batch]) -> None:
        """One optimiser step over this rank's micro-batches."""
        self._optimizer.zero_grad(set_to_none=False)
        for i, batch in enumerate(batches):
            is_last = i == len(batches) - 1
            with contextlib.nullcontext() if is_last else self._model.no_sync():
                images = batch.images.to(self._device, non_blocking=True)
                labels = batch.labels.to(self._device, non_blocking=True)
                with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bfloat16):
                    logits = self._model((images.float() - self._mean) / self._std)
                loss = functional.cross_entropy(logits.float(), labels, label_smoothing=self._smoothing)
                torch.autograd.backward(loss / len(batches))
        self._optimizer.step()
