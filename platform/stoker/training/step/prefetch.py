"""Prefetch micro-batches to the device: on a GPU the next one is copied while the current one is computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from stoker.dataset import Batch

__all__ = ["OnDevice", "on_device"]


class OnDevice(NamedTuple):
    """A micro-batch on the device, without its padding.

    ``images``: uint8 [n, 3, H, W], channels_last; ``labels``: int64 [n]. A micro-batch of padding alone has ``size`` 0
    and keeps two padding samples, which batch norms need.
    """

    batch: Batch
    size: int
    images: Tensor
    labels: Tensor


def on_device(batches: Sequence[Batch], device: torch.device) -> Iterator[OnDevice]:
    """Yield each of ``batches`` on ``device``."""
    if device.type != "cuda":
        for batch in batches:
            yield _cut(batch)
        return
    side, ahead = torch.cuda.Stream(device), None  # type: ignore[no-untyped-call]
    for batch in batches:
        with torch.cuda.stream(side):
            following = _copied(batch, device)
        if ahead is not None:
            yield ahead
        torch.cuda.current_stream(device).wait_stream(side)
        for tensor in (following.images, following.labels):
            tensor.record_stream(torch.cuda.current_stream(device))
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
