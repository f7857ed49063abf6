"""Micro-batches on their way to the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from stoker.dataset import Batch
from stoker.training.step.prefetch import Prefetcher


def batch_of(size: int, padding: int) -> Batch:
    numbers = torch.tensor([*range(size), *[-1] * padding])
    images = torch.zeros(size + padding, 3, 1, 1, dtype=torch.uint8)
    return Batch(images, numbers.clone(), numbers, 0, 0, 0)


def test_padding_is_cut_off() -> None:
    (there,) = Prefetcher(torch.device("cpu")).on_device([batch_of(3, 2)])
    assert (there.size, len(there.images), there.labels.tolist()) == (3, 3, [0, 1, 2])


def test_a_micro_batch_of_padding_alone_goes_through_batch_norm() -> None:
    (there,) = Prefetcher(torch.device("cpu")).on_device([batch_of(0, 4)])
    assert (there.size, len(there.images), len(there.labels)) == (0, 2, 2)
    nn.BatchNorm2d(3)(there.images.float())  # one value a channel would raise


class _Streams:
    """CUDA's streams as far as a prefetcher uses them, on the CPU; ``told`` is what happened in which order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: list[str] = []
        self._inside = "main"
        monkeypatch.setattr(torch.cuda, "Stream", lambda _: self._made())
        monkeypatch.setattr(torch.cuda, "stream", self._entered)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _: self)
        monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor)
        monkeypatch.setattr(Tensor, "to", lambda tensor, _, *, non_blocking: self._copied(tensor, non_blocking))
        monkeypatch.setattr(Tensor, "record_stream", lambda *_: self.told.append("recorded"))

    def wait_stream(self, _: object) -> None:
        self.told.append("main waits")

    def _made(self) -> str:
        self.told.append("made")
        return "side"

    @contextmanager
    def _entered(self, stream: str) -> Iterator[None]:
        self._inside = stream
        yield
        self._inside = "main"

    def _copied(self, tensor: Tensor, non_blocking: bool) -> Tensor:
        assert non_blocking
        self.told.append(f"copied on {self._inside}")
        return tensor


def test_all_steps_copy_on_one_stream_and_the_next_micro_batch_before_the_current_one_is_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    streams = _Streams(monkeypatch)
    prefetcher = Prefetcher(torch.device("cuda", 0))
    for _ in range(2):
        for micro_batch in prefetcher.on_device([batch_of(2, 0), batch_of(1, 1)]):
            streams.told.append(f"computed {micro_batch.size}")
    copied, handed_over = ["copied on side"] * 2, ["main waits", "recorded", "recorded"]
    step = [*copied, *handed_over, *copied, "computed 2", *handed_over, "computed 1"]
    assert streams.told == ["made", *step, *step]
