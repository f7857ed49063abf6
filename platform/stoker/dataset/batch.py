"""Assemble micro-batches: a few threads decode each sample directly into its place."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stoker.dataset.decode import Decoder
from stoker.dataset.order import uniform
from stoker.dataset.stream import Streamed
from stoker.dataset.undecodable import UndecodableSample
from stoker.errors import DatasetError

__all__ = ["Batch", "BatchMaker"]


@dataclass(frozen=True)
class Batch:
    """One micro-batch.

    ``images``: uint8 [m, 3, H, W], channels_last, RGB (or what another decoder makes). ``labels``: int64 [m].
    ``numbers``: int64 [m], of the samples in their split; a corrupt one that another replaces keeps its number. Places
    that the epoch's last, partial global batch does not fill are padding, which comes last: label and number -1, image
    zeros. So is, in an evaluation, the place of a corrupt sample that is skipped, wherever it is.
    """

    images: Tensor
    labels: Tensor
    numbers: Tensor
    epoch: int
    step: int
    micro_batch: int

    @property
    def inputs(self) -> Tensor:
        """``images``, under a name that suits other kinds of sample too."""
        return self.images

    @property
    def size(self) -> int:
        """Samples that are not padding."""
        return int((self.numbers >= 0).sum())


class BatchMaker:
    """Makes batches with ``decoder``, each in ``parts`` calls.

    A sample that cannot be decoded is an error (``on_corrupt`` "fail"), replaced by the next one of its block ("skip"),
    or its place is padding ("leave_out"); the latter two up to ``corrupt_limit`` times.
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        parts: int,
        on_corrupt: Literal["fail", "skip", "leave_out"],
        corrupt_limit: int,
    ) -> None:
        self.decoder, self._parts = decoder, parts
        self._on_corrupt, self._corrupt_limit = on_corrupt, corrupt_limit
        self._lock = threading.Lock()
        self.corrupt = 0
        """samples that were replaced or left out so far"""
        self.decode_s = 0.0
        """seconds spent decoding so far, summed over threads"""

    def start(
        self, pool: ThreadPoolExecutor, streamed: list[Streamed | None], key: int, place: tuple[int, int, int]
    ) -> Callable[[], Batch]:
        """Start the batch of ``streamed`` (None is padding, which comes last); the callable waits for it.

        ``key`` and the samples' numbers decide their draws; ``place`` is (epoch, step, micro-batch).
        """
        inputs = self.decoder.empty(len(streamed))
        numbers = torch.tensor([-1 if s is None else s.sample.number for s in streamed], dtype=torch.int64)
        labels = torch.tensor([-1 if s is None else s.sample.label for s in streamed], dtype=torch.int64)
        present = [s for s in streamed if s is not None]
        inputs[len(present) :] = 0
        draws = uniform(key, [s.sample.number for s in present], self.decoder.draws)

        def fill(part: slice) -> None:
            members, began = present[part], time.monotonic()
            failed = self.decoder.decode([s.sample for s in members], draws[part], inputs[part])
            with self._lock:
                self.decode_s += time.monotonic() - began
            for i, error in failed.items():
                at = part.start + i
                labels[at] = self._replace(members[i], error, draws[at : at + 1], inputs[at : at + 1])
                if labels[at] < 0:
                    numbers[at] = -1

        members_per_part = -(-len(present) // self._parts) or 1
        parts = [slice(a, min(a + members_per_part, len(present))) for a in range(0, len(present), members_per_part)]
        filling = [pool.submit(fill, part) for part in parts]

        def finished() -> Batch:
            for part in filling:
                part.result()
            return Batch(inputs, labels, numbers, *place)

        return finished

    def _replace(self, streamed: Streamed, error: UndecodableSample, draws: NDArray[np.float64], out: Tensor) -> int:
        """Decode the next valid sample of the block into ``out``, if the user allows it; returns its label.

        Where samples are left out, ``out`` becomes zeros, and the label is -1.
        """
        sample = streamed.sample
        where = f"{sample.shard}, sample {sample.key} at offset {sample.offset}"
        if self._on_corrupt == "fail":
            raise DatasetError(
                f"{where}: {error}; prepare the data set again, or set data.on_corrupt to skip"
            ) from error
        with self._lock:
            self.corrupt += 1
        if self.corrupt > self._corrupt_limit:
            raise DatasetError(
                f"{where}: corrupt sample {self.corrupt}, above data.corrupt_limit ({self._corrupt_limit}); "
                "prepare the data set again"
            )
        if self._on_corrupt == "leave_out":
            out.zero_()
            return -1
        block = streamed.block
        at = next(i for i, other in enumerate(block) if other.number == sample.number)
        for other in block[at + 1 :] + block[:at]:
            if not self.decoder.decode([other], draws, out):
                return other.label
        raise DatasetError(f"{where}: no sample of its block can be decoded; prepare the data set again")
