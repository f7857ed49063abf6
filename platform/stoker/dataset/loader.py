"""The loader: a plain iterable of uint8 batches that knows nothing of Ray, usable in anybody's training loop.

    shards ──BlockStream──▶ encoded samples ──decode threads──▶ uint8 micro-batches, a few ahead of the loop

Every batch is a function of (data set, seed, epoch, batch sizes) and the position alone; see ``stoker.dataset.order``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stoker.dataset.ahead import ahead
from stoker.dataset.decode import (
    Decoder,
    EvaluationImages,
    TrainingImages,
    TrainingImagesOnGpu,
    UndecodableSample,
)
from stoker.dataset.decode.pool import decode_pool
from stoker.dataset.manifest import read_manifest
from stoker.dataset.order import EpochOrder, key_of, micro_batches_of, uniform
from stoker.dataset.samples import INDEX_BYTES, ShardReader
from stoker.dataset.stream import BlockStream, Streamed
from stoker.errors import DatasetError
from stoker.recipe import Data, Recipe
from stoker.storage import BlockCache, InFlight, Location, Reads, locate

__all__ = ["Batch", "Loader"]

_AHEAD = 4
"""micro-batches that are ready before they are asked for"""


@dataclass(frozen=True)
class Batch:
    """One micro-batch.

    ``images``: uint8 [m, 3, H, W], channels_last, RGB (or what another decoder makes). ``labels``: int64 [m].
    ``numbers``: int64 [m], of the samples in their split. Places that the epoch's last, partial global batch does not
    fill are padding: label and number -1, image zeros; they come last.
    """

    images: Tensor
    labels: Tensor
    numbers: Tensor
    epoch: int
    step: int
    micro_batch: int

    @property
    def inputs(self) -> Tensor:
        """``images`` by a name that fits other kinds of sample too."""
        return self.images

    @property
    def size(self) -> int:
        """Samples that are not padding."""
        return int((self.numbers >= 0).sum())


class Loader:
    """Iterating gives the micro-batches of this rank to the epoch's end, then stands at the next epoch's beginning.

    ``global_batch`` samples a step over all ranks, in micro-batches of ``micro_batch``; ``rank`` and ``world_size``
    choose which of them come here and change nothing else. ``shuffled=False`` gives every sample once in its own
    order, resized and centre-cropped (``resize``), with the last batch padded: an evaluation. ``decoder`` makes samples
    of another kind, or images in another way, into batches.

    Raises:
        RecipeError: ``data.decode`` is gpu where there is no GPU that decodes.
        DatasetError: the data set is missing or damaged; while iterating, a sample cannot be decoded.
        StorageError: the store refuses or does not answer within the location's patience.
        ValueError: sizes or ranks that cannot be.
    """

    def __init__(
        self,
        root: Location | str,
        split: str,
        *,
        global_batch: int,
        micro_batch: int,
        data: Data | None = None,
        resize: int | None = None,
        seed: int = 0,
        shuffled: bool = True,
        rank: int = 0,
        world_size: int = 1,
        decoder: Decoder | None = None,
    ) -> None:
        self._root = locate(root) if isinstance(root, str) else root
        self._data = data if data is not None else Data(url=self._root.url)
        self._decoder = decoder or _image_decoder(self._data, resize, is_training=shuffled)
        # nvJPEG wants many images in a call, a thread of the CPU its share of them
        self._parts = 1 if isinstance(self._decoder, TrainingImagesOnGpu) else self._data.decode_threads
        self._seed, self._shuffled = seed, shuffled
        self._global_batch, self._micro_batch = global_batch, micro_batch
        if global_batch % micro_batch:
            raise ValueError(f"global_batch ({global_batch}) must be a multiple of micro_batch ({micro_batch})")
        self._micro_batches = micro_batches_of(rank, world_size, global_batch // micro_batch)
        manifest = read_manifest(self._root)
        self._split_name, self._split = split, manifest.split(split)
        self._fingerprint = manifest.fingerprint
        self.classes = manifest.classes
        self._reads = Reads(
            deadline_s=self._data.read_deadline_s,
            hedge_percentile=self._data.hedge_percentile,
            in_flight=InFlight(
                min(2, self._data.read_threads), self._data.read_threads, min(8, self._data.read_threads)
            ),
        )
        self._cache = BlockCache(self._data.cache_dir, self._data.cache_mb * 2**20) if self._data.cache_dir else None
        self._reader = ShardReader(
            self._root, self._split, reads=self._reads, cache=self._cache, block=self._data.block_samples
        )
        self._epoch, self._step = 0, 0
        self.corrupt = 0
        """Samples of this epoch that were replaced because they could not be decoded."""
        self._most_held_bytes = 0
        self._lock = threading.Lock()
        self.order(0)

    @classmethod
    def for_training(cls, recipe: Recipe, *, rank: int = 0, world_size: int = 1) -> Loader:
        """The loader of a recipe's training split."""
        root = locate(recipe.data.url, patience_s=recipe.patience_s)
        return cls(
            root,
            recipe.data.train_split,
            data=recipe.data,
            global_batch=recipe.batch.total,
            micro_batch=recipe.batch.micro,
            seed=recipe.seed,
            rank=rank,
            world_size=world_size,
        )

    @classmethod
    def for_evaluation(cls, recipe: Recipe, *, rank: int = 0, world_size: int = 1) -> Loader:
        """The loader of a recipe's validation split: every sample once, over all ranks."""
        root = locate(recipe.data.url, patience_s=recipe.patience_s)
        return cls(
            root,
            recipe.data.validation_split,
            data=recipe.data,
            resize=recipe.evaluation_resize,
            global_batch=recipe.batch.micro * world_size,
            micro_batch=recipe.batch.micro,
            shuffled=False,
            rank=rank,
            world_size=world_size,
        )

    @property
    def micro_batches(self) -> range:
        """The micro-batches of each step that come here."""
        return self._micro_batches

    @property
    def samples(self) -> int:
        """Samples of the split."""
        return self._split.samples

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return self.order(0).steps

    @property
    def bytes_read(self) -> int:
        """Bytes read from the store so far."""
        return self._reads.counters.bytes

    @property
    def memory_bound_bytes(self) -> int:
        """The most memory that this loader takes, in bytes.

        Encoded samples (``data.memory_mb``, or what one window of each slot takes if that is more), indexes, and the
        batches that are ready or under way.
        """
        slots = len(self._micro_batches) * self._micro_batch
        of_slot = self._data.block_samples * self._data.window_blocks
        split = self._split
        sample = sum(shard.bytes for shard in split.shards) // max(1, split.samples)
        encoded = max(self._data.memory_mb * 2**20, min(slots * of_slot, split.samples) * sample)
        indexes = min(INDEX_BYTES, sum(shard.index_bytes for shard in split.shards))
        batch = self._decoder.empty(1).nbytes * self._micro_batch
        return encoded + indexes + (_AHEAD + 2) * batch

    def metrics(self) -> dict[str, float]:
        """What became of the reads so far, by name: of the store (``read_…``) and of the cache (``cache_…``).

        Among them every failure by kind, what was tried again and what a second request won; see docs/streaming.md.
        """
        found = {f"read_{name}": float(value) for name, value in self._reads.counters.snapshot().items()}
        if self._cache:
            found |= {f"cache_{name}": float(value) for name, value in self._cache.counters.snapshot().items()}
        return found | {"corrupt_samples": float(self.corrupt), "most_held_bytes": float(self._most_held_bytes)}

    def order(self, epoch: int) -> EpochOrder:
        """The order of ``epoch``: which sample each slot takes at each step."""
        return EpochOrder(
            samples=self._split.samples,
            global_batch=self._global_batch,
            key=key_of(self._fingerprint, self._split_name, self._seed, epoch),
            block=self._data.block_samples,
            window=self._data.window_blocks,
            last_batch=self._last_batch,
            shuffled=self._shuffled,
        )

    @property
    def _last_batch(self) -> Literal["drop", "pad"]:
        return self._data.last_batch if self._shuffled else "pad"

    def state_dict(self) -> dict[str, int]:
        """The position ``{"epoch", "step"}`` of the first step that was not given out whole to this rank."""
        return {"epoch": self._epoch, "step": self._step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to a position; the next iteration begins there. Costs no reading."""
        self._epoch, self._step = int(state["epoch"]), int(state["step"])

    def __iter__(self) -> Iterator[Batch]:
        epoch, first_step, order = self._epoch, self._step, self.order(self._epoch)
        self.corrupt = 0
        slots = range(self._micro_batches.start * self._micro_batch, self._micro_batches.stop * self._micro_batch)
        stream = BlockStream(
            self._reader,
            order,
            slots,
            from_step=first_step,
            read_threads=self._data.read_threads,
            memory_bytes=self._data.memory_mb * 2**20,
        )
        with (
            decode_pool(self._data.decode_threads) as pool,
            closing(ahead(self._batches(stream, pool, epoch, first_step), _AHEAD)) as ready,
            stream,
        ):
            for batch in ready:
                self._most_held_bytes = max(self._most_held_bytes, stream.most_bytes)
                if batch.micro_batch == self._micro_batches.stop - 1:
                    is_end = batch.step + 1 == order.steps
                    self._epoch, self._step = (epoch + 1, 0) if is_end else (epoch, batch.step + 1)
                yield batch

    def _batches(
        self, stream: BlockStream, pool: ThreadPoolExecutor, epoch: int, first_step: int
    ) -> Iterator[Callable[[], Batch]]:
        key = key_of("augment", self._seed, epoch)
        for step, samples in enumerate(stream, first_step):
            for i, number in enumerate(self._micro_batches):
                members = samples[i * self._micro_batch : (i + 1) * self._micro_batch]
                yield self._submit(pool, members, key, (epoch, step, number))

    def _submit(
        self, pool: ThreadPoolExecutor, streamed: list[Streamed | None], key: int, place: tuple[int, int, int]
    ) -> Callable[[], Batch]:
        inputs = self._decoder.empty(len(streamed))
        numbers = torch.tensor([-1 if s is None else s.sample.number for s in streamed], dtype=torch.int64)
        labels = torch.tensor([-1 if s is None else s.sample.label for s in streamed], dtype=torch.int64)
        present = [s for s in streamed if s is not None]  # padding comes last
        inputs[len(present) :] = 0
        draws = uniform(key, [s.sample.number for s in present], self._decoder.draws)

        def fill(part: slice) -> None:
            members = present[part]
            failed = self._decoder.decode([s.sample for s in members], draws[part], inputs[part])
            for i, error in failed.items():
                at = part.start + i
                labels[at] = self._replace(members[i], error, draws[at : at + 1], inputs[at : at + 1])

        share = -(-len(present) // self._parts) or 1
        parts = [slice(a, min(a + share, len(present))) for a in range(0, len(present), share)]
        filling = [pool.submit(fill, part) for part in parts]

        def finished() -> Batch:
            for part in filling:
                part.result()
            return Batch(inputs, labels, numbers, *place)

        return finished

    def _replace(self, streamed: Streamed, error: UndecodableSample, draws: NDArray[np.float64], out: Tensor) -> int:
        """Put the next good sample of the block into ``out``, if the user allows it; its label."""
        sample, block = streamed.sample, streamed.block
        where = f"{self._root / sample.shard}, sample {sample.key} at offset {sample.offset}"
        if self._data.on_corrupt == "fail":
            raise DatasetError(
                f"{where}: {error}; prepare the data set again, or set data.on_corrupt to skip"
            ) from error
        with self._lock:
            self.corrupt += 1
        if self.corrupt > self._data.corrupt_limit:
            raise DatasetError(f"{where}: the {self.corrupt}th corrupt sample, above data.corrupt_limit")
        at = next(i for i, other in enumerate(block) if other.number == sample.number)
        for other in block[at + 1 :] + block[:at]:
            if not self._decoder.decode([other], draws, out):
                return other.label
        raise DatasetError(f"{where}: no sample of its block can be decoded; prepare the data set again")


def _image_decoder(data: Data, resize: int | None, *, is_training: bool) -> Decoder:
    if is_training and data.decode == "gpu":
        return TrainingImagesOnGpu(data.image_size, data.augment)
    if is_training:
        return TrainingImages(data.image_size, data.augment, scales_in_dct=data.scales_in_dct)
    return EvaluationImages(data.image_size, resize or round(data.image_size / 0.875))
