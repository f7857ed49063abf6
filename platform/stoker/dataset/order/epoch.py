"""Compute the order of one epoch by arithmetic alone.

1. The samples of a split, numbered through its shards, are cut into blocks of ``block`` samples. Only the last block
   may be shorter: the key chooses its place in the sequence, and a keyed permutation orders the full blocks around
   it. That is the *sequence*: every sample once.
2. Each of the ``global_batch`` slots owns a contiguous *run* of the sequence, so it reads whole blocks one after
   another; step t takes the t-th sample of every run. With ``last_batch="drop"`` all runs are as long as the
   shortest and the rest of the sequence (other samples each epoch) is left out; with ``"pad"`` every sample has its
   place, and slots without one in the last step are padding.
3. A run is cut into *windows* of ``window`` blocks, at block boundaries and staggered from slot to slot so that
   reads spread over the steps; within a window the samples are permuted once more.

A step's samples are therefore a function of (key, samples, global_batch, block, window) and of nothing else: rank,
world size, threads and restarts do not matter. Seeking costs one permutation of a window a slot.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stoker.dataset.order.draws import key_of
from stoker.dataset.order.permutation import Permutation

__all__ = ["EpochOrder", "Window"]


@dataclass(frozen=True)
class Window:
    """The samples that a slot holds at once.

    ``samples``: int64 [steps], the slot's sample for each of the steps from ``first_step`` on.
    ``pieces``: (first, stop) of contiguous sample numbers, together exactly ``samples``; each is within one block.
    """

    slot: int
    first_step: int
    samples: NDArray[np.int64]
    pieces: tuple[tuple[int, int], ...]

    @property
    def stop_step(self) -> int:
        return self.first_step + len(self.samples)


@dataclass(frozen=True)
class EpochOrder:
    """The order of one epoch over ``samples`` samples in global batches of ``global_batch`` slots.

    ``shuffled=False`` keeps the samples in their own order (evaluation).

    Raises:
        ValueError: a size is not positive, or ``drop`` leaves no step.
    """

    samples: int
    global_batch: int
    key: int
    block: int = 16
    window: int = 4
    last_batch: Literal["drop", "pad"] = "drop"
    shuffled: bool = True

    def __post_init__(self) -> None:
        for name in ("samples", "global_batch", "block", "window"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.steps == 0:
            raise ValueError(
                f"a global batch of {self.global_batch} is larger than the split ({self.samples} samples) and "
                "last_batch is drop, so an epoch has no step; lower batch.total or set data.last_batch to pad"
            )

    @property
    def steps(self) -> int:
        """Steps of the epoch."""
        full, rest = divmod(self.samples, self.global_batch)
        return full + (1 if rest and self.last_batch == "pad" else 0)

    def run(self, slot: int) -> tuple[int, int]:
        """(first, stop) positions in the sequence that ``slot`` owns; step t takes position first + t."""
        full, rest = divmod(self.samples, self.global_batch)
        if self.last_batch == "drop":
            return slot * full, (slot + 1) * full
        first = slot * full + min(slot, rest)
        return first, first + full + (slot < rest)

    def samples_at(self, step: int, slots: ArrayLike) -> NDArray[np.int64]:
        """The sample of each of ``slots`` (int [n]) at ``step``: int64 [n], -1 where a slot is padding.

        Raises:
            ValueError: ``step`` is not in ``range(steps)``.
        """
        self._check_step(step)
        found = np.full(np.shape(slots), -1, dtype=np.int64)
        for i, slot in enumerate(np.asarray(slots).tolist()):
            first, stop = self.run(slot)
            if first + step < stop:
                window = self._window(slot, first + step)
                found[i] = window.samples[step - window.first_step]
        return found

    def windows(self, slot: int, from_step: int = 0) -> Iterator[Window]:
        """The windows of ``slot``, beginning with the one that holds ``from_step``."""
        first, stop = self.run(slot)
        position = first + from_step
        while position < stop:
            window = self._window(slot, position)
            yield window
            position = first + window.stop_step

    # The sequence: positions 0 to samples - 1, in blocks that are numbered from 0 in its order.

    @property
    def _full_blocks(self) -> int:
        return self.samples // self.block

    @property
    def _tail(self) -> int:
        """Samples of the shorter last block."""
        return self.samples % self.block

    @cached_property
    def _tail_at(self) -> int:
        """Number of full blocks before the shorter one."""
        return key_of(self.key, "tail") % (self._full_blocks + 1) if self.shuffled else self._full_blocks

    @cached_property
    def _blocks(self) -> Permutation:
        return Permutation(max(1, self._full_blocks), key_of(self.key, "blocks"))

    def _block_at(self, position: int) -> int:
        before = self._tail_at * self.block
        if position < before or not self._tail:
            return position // self.block
        return self._tail_at if position < before + self._tail else (position - self._tail) // self.block + 1

    def _block_start(self, block: int) -> int:
        if block <= self._tail_at or not self._tail:
            return block * self.block
        return (block - 1) * self.block + self._tail

    def _first_samples(self, blocks: NDArray[np.int64]) -> NDArray[np.int64]:
        """The number of the first sample of each of the blocks at the places ``blocks`` of the sequence."""
        places = blocks - (blocks > self._tail_at) if self._tail else blocks
        if not self.shuffled:
            return self.block * places
        is_tail = blocks == self._tail_at if self._tail else np.zeros(blocks.shape, dtype=bool)
        starts = np.full(blocks.shape, self._full_blocks * self.block)
        starts[~is_tail] = self.block * self._blocks(places[~is_tail])
        return starts

    def _window(self, slot: int, position: int) -> Window:
        run_first, run_stop = self.run(slot)
        stagger = slot * self.window // self.global_batch
        number = (self._block_at(position) + stagger) // self.window
        first = max(run_first, self._block_start(max(0, number * self.window - stagger)))
        stop = min(run_stop, self._block_start((number + 1) * self.window - stagger))
        pieces = tuple(self._pieces(first, stop))
        samples = np.concatenate([np.arange(a, b, dtype=np.int64) for a, b in pieces])
        if self.shuffled:
            mixed = Permutation(len(samples), key_of(self.key, "window", slot, number))
            samples = samples[mixed(np.arange(len(samples)))]
        return Window(slot, first - run_first, samples, pieces)

    def _pieces(self, first: int, stop: int) -> Iterator[tuple[int, int]]:
        blocks = np.arange(self._block_at(first), self._block_at(stop - 1) + 1)
        # One call for all: each costs some hundred microseconds, however few the blocks are.
        for block, begin in zip(blocks.tolist(), self._first_samples(blocks).tolist(), strict=True):
            start = self._block_start(block)
            yield begin + max(first - start, 0), begin + min(stop, self._block_start(block + 1)) - start

    def _check_step(self, step: int) -> None:
        if not 0 <= step < self.steps:
            raise ValueError(f"step must be in range({self.steps}), not {step}")
