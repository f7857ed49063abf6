"""Prefetch micro-batches to the device: on a GPU the next one is copied while the current one is computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from stoker.dataset import Batch

__all__ = ["OnDevice", "Prefetcher"]


class OnDevice(NamedTuple):
    """A micro-batch on the device, without its padding.

    ``images``: uint8 [n, 3, H, W], channels_last; ``labels``: int64 [n]. A micro-batch of padding alone has ``size`` 0
    and keeps two padding samples, which batch norms need.
    """

    batch: Batch
    size: int
    images: Tensor
    labels: Tensor


class Prefetcher:
    """Copies micro-batches to ``device``, on a GPU by a stream of its own: one for all steps.

    torch keeps the memory of each stream apart, so a stream a step would take the memory of its batches anew.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def on_device(self, batches: Sequence[Batch]) -> Iterator[OnDevice]:
        """Yield each of ``batches`` on the device, where the current stream may use it."""
        if self._side is None:
            for batch in batches:
                yield _cut(batch)
            return
        ahead = None
        for batch in batches:
            with torch.cuda.stream(self._side):
                following = _copied(batch, self._device)
            if ahead is not None:
                yield ahead
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._side)
            for tensor in (following.images, following.labels):
                tensor.record_stream(current)
            ahead = following
        if ahead is not None:
            yield ahead


def _cut(batch: Batch) -> OnDevice:
    size = batch.size
    return OnDevice(batch, size, batch.images[: size or 2], batch.labels[: size or 2])


def _copied(batch: Batch, device: torch.device) -> OnDevice:
    cut = _cut(batch)
    images, labels = (t if t.is_cuda else t.pin_memory().to(device, non_blocking=True) for t in cut[2:])
    return OnDevice(batch, cut.size, images, labels)
