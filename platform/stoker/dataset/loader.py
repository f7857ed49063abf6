"""Load batches of a data set in a deterministic order: a plain iterable, independent of Ray, for any training loop.

    shards ──BlockStream──▶ encoded samples ──decode threads──▶ uint8 micro-batches, a few ahead of the loop

Every batch is a function of (data set, seed, epoch, batch sizes) and the position alone; see ``stoker.dataset.order``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from typing import Literal

from stoker.dataset.ahead import ahead
from stoker.dataset.batch import Batch, BatchMaker
from stoker.dataset.decode import Decoder, EvaluationImages, TrainingImages, TrainingImagesOnGpu
from stoker.dataset.decode.pool import decode_pool
from stoker.dataset.format.manifest import read_manifest
from stoker.dataset.order import EpochOrder, key_of, micro_batches_of
from stoker.dataset.samples import INDEX_BYTES, ShardReader
from stoker.dataset.stream import BlockStream
from stoker.recipe import Data, Recipe
from stoker.storage import BlockCache, InFlight, Location, Reads, locate

__all__ = ["Loader"]

_AHEAD = 4
"""micro-batches that are decoded ahead of the training loop"""
_CLIENTS_BYTES = 64 * 2**20
"""of the store's clients and the threads' stacks, above what imports take"""


class Loader:
    """Iterates over the micro-batches of this rank until the end of the epoch; the next iteration is the next epoch.

    ``global_batch`` samples a step over all ranks, in micro-batches of ``micro_batch``; ``rank`` and ``world_size``
    select those of this process and change nothing else. ``shuffled=False`` yields every sample once in its stored
    order, resized and centre-cropped (``resize``), with the last batch padded: an evaluation. A ``decoder`` of your own
    decodes other kinds of sample, or images in another way.

    Raises:
        RecipeError: ``data.decode`` is gpu, but no GPU can decode here.
        DatasetError: the data set is missing or damaged; while iterating, a sample cannot be decoded.
        StorageError: the store refuses, or does not respond within the location's timeout.
        ValueError: invalid sizes or ranks.
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
        # nvJPEG is fastest with many images in a call; on the CPU each thread gets a part
        parts = 1 if isinstance(self._decoder, TrainingImagesOnGpu) else self._data.decode_threads
        self._follows_epoch = decoder is None and shuffled and self._data.resizing is not None
        self._maker = BatchMaker(
            self._decoder, parts=parts, on_corrupt=self._data.on_corrupt, corrupt_limit=self._data.corrupt_limit
        )
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
        self._most_held_bytes = 0
        self.order(0)

    @classmethod
    def for_training(cls, recipe: Recipe, *, rank: int = 0, world_size: int = 1) -> Loader:
        """The loader of a recipe's training split."""
        root = locate(recipe.data.url, timeout_s=recipe.storage_timeout_s)
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
        """The loader of a recipe's validation split: every sample once, over all ranks.

        Which samples make a micro-batch does not depend on ``world_size``.
        """
        root = locate(recipe.data.url, timeout_s=recipe.storage_timeout_s)
        return cls(
            root,
            recipe.data.validation_split,
            # nothing is shuffled, so a window is one block
            data=recipe.data.model_copy(
                update={"image_size": recipe.evaluation_image_size, "resizing": None, "window_blocks": 1}
            ),
            resize=recipe.evaluation_resize,
            global_batch=recipe.batch.total,
            micro_batch=recipe.batch.micro,
            shuffled=False,
            rank=rank,
            world_size=world_size,
        )

    @property
    def micro_batches(self) -> range:
        """The micro-batches of each step that this rank loads."""
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
    def corrupt(self) -> int:
        """Samples of this epoch that were replaced because they could not be decoded."""
        return self._maker.corrupt

    @property
    def bytes_read(self) -> int:
        """Bytes read from the store so far."""
        return self._reads.counters.bytes

    @property
    def memory_bound_bytes(self) -> int:
        """Upper bound of this loader's memory, in bytes; docs/how-to/storage.md lists what counts.

        Encoded samples (``data.memory_mb``, or one window of each slot if that is more), a second time those of reads
        in flight, indexes, batches that are ready or being made, and what the store's clients and the threads take;
        and half more, because freed blocks of various sizes leave gaps that the C library keeps (a third was measured,
        at 256 slots of ImageNet's size).
        """
        data, split = self._data, self._split
        block = data.block_samples * sum(shard.bytes for shard in split.shards) // max(1, split.samples)
        slots = len(self._micro_batches) * self._micro_batch
        blocks = min(slots * data.window_blocks, -(-split.samples // data.block_samples))
        encoded = max(data.memory_mb * 2**20, blocks * block) + data.read_threads * block
        indexes = min(INDEX_BYTES, sum(shard.index_bytes for shard in split.shards))
        batches = (_AHEAD + 2) * self._micro_batch * self._decoder.empty(1).nbytes
        return (encoded + indexes + batches + _CLIENTS_BYTES) * 3 // 2

    def metrics(self) -> dict[str, float]:
        """Counters of the reads so far, by name: of the store (``read_…``) and of the cache (``cache_…``).

        They include failures by kind, retries and won hedges; ``decode_s`` is the time spent decoding, summed over
        threads; see docs/reference/metrics.md.
        """
        found = {f"read_{name}": float(value) for name, value in self._reads.counters.snapshot().items()}
        if self._cache:
            found |= {f"cache_{name}": float(value) for name, value in self._cache.counters.snapshot().items()}
        return found | {
            "corrupt_samples": float(self.corrupt),
            "most_held_bytes": float(self._most_held_bytes),
            "decode_s": self._maker.decode_s,
        }

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
        """The position ``{"epoch", "step"}`` of the first step that this rank has not been given in full."""
        return {"epoch": self._epoch, "step": self._step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Seek to a position, at which the next iteration starts; reads nothing."""
        self._epoch, self._step = int(state["epoch"]), int(state["step"])

    def close(self) -> None:
        """Release the node's cache, whose blocks are kept; also done when the process exits."""
        if self._cache:
            self._cache.close()

    def __iter__(self) -> Iterator[Batch]:
        epoch, first_step, order = self._epoch, self._step, self.order(self._epoch)
        self._maker.corrupt = 0
        if self._follows_epoch:  # the size is a function of the epoch, so a resumed epoch has it too
            sized = self._data.model_copy(update={"image_size": self._data.image_size_at(epoch), "resizing": None})
            self._maker.decoder = _image_decoder(sized, None, is_training=True)
        slots = range(self._micro_batches.start * self._micro_batch, self._micro_batches.stop * self._micro_batch)
        stream = BlockStream(
            self._reader,
            order,
            slots,
            from_step=first_step,
            read_threads=self._data.read_threads,
            memory_bytes=self._data.memory_mb * 2**20,
            decoding_steps=-(-(_AHEAD + 2) // len(self._micro_batches)),
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
                made = self._maker.start(pool, members, key, (epoch, step, number))
                yield made
            if (
                step == first_step
            ):  # the stream starts its other reads at the next request: not while this batch is made
                with suppress(Exception):  # raised again where the batch is consumed
                    made()


def _image_decoder(data: Data, resize: int | None, *, is_training: bool) -> Decoder:
    if is_training and data.decode == "gpu":
        return TrainingImagesOnGpu(data.image_size, data.augment)
    if is_training:
        return TrainingImages(data.image_size, data.augment, scales_in_dct=data.scales_in_dct)
    return EvaluationImages(data.image_size, resize or round(data.image_size / 0.875))
