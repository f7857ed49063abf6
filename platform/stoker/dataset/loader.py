"""Load batches of a data set in a deterministic order: a plain iterable, independent of Ray, for any training loop.

    shards ──BlockStream──▶ encoded samples ──decode threads──▶ uint8 micro-batches, a few ahead of the loop

Every batch is a function of (data set, seed, epoch, batch sizes) and the position alone; see ``stoker.dataset.order``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

from stoker.dataset.batch import Batch, BatchMaker
from stoker.dataset.decode import Decoder, EvaluationImages, TrainingImages, TrainingImagesOnGpu
from stoker.dataset.format.manifest import read_manifest
from stoker.dataset.label_counts import LabelCounts, label_counts
from stoker.dataset.order import EpochOrder, micro_batches_of
from stoker.dataset.pipeline import AHEAD, Pipeline, PipelineSettings
from stoker.dataset.position import SplitOrder
from stoker.dataset.samples import INDEX_BYTES, ShardReader
from stoker.errors import DatasetError
from stoker.recipe import Data, Recipe
from stoker.storage import BlockCache, InFlight, Location, Reads, locate

__all__ = ["Loader"]

_CLIENTS_BYTES = 64 * 2**20
"""of the store's clients and the threads' stacks, above what imports take"""


class Loader:
    """Iterates over the micro-batches of this rank until the end of the epoch; the next iteration is the next epoch.

    Of several iterations at once, the one begun last moves the position.

    A training loader reads across epochs: when one ends, the next one's first batches are read and decoded already.
    Nothing is read of the epoch ``epochs`` and later ones before they are iterated over; without it, reading stops only
    at :meth:`close`, or with the loader's own end.

    ``global_batch`` samples a step over all ranks, in micro-batches of ``micro_batch``; ``rank`` and ``world_size``
    select those of this process and change nothing else. ``shuffled=False`` yields every sample once in its stored
    order, resized and centre-cropped (``resize``), with the last batch padded: an evaluation. A ``decoder`` of your own
    decodes other kinds of sample, or images in another way.

    Raises:
        RecipeError: ``data.decode`` is gpu, but no GPU can decode here.
        DatasetError: the data set is missing or damaged; while iterating, a sample cannot be decoded.
        StorageError: the store refuses, or does not respond within the location's timeout.
        ValueError: invalid sizes or ranks.
        RuntimeError: while iterating, the loader was closed.
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
        epochs: int | None = None,
    ) -> None:
        self._root = locate(root) if isinstance(root, str) else root
        self._data = data if data is not None else Data(url=self._root.url)
        self._decoder = decoder or _image_decoder(self._data, resize, is_training=shuffled)
        self._micro_batch, self._shuffled, self._epochs = micro_batch, shuffled, epochs
        if micro_batch < 1 or global_batch < 1 or global_batch % micro_batch:
            raise ValueError(
                f"global_batch ({global_batch}) must be a multiple of micro_batch ({micro_batch}), from 1 on"
            )
        self._micro_batches = micro_batches_of(rank, world_size, global_batch // micro_batch)
        manifest = read_manifest(self._root)
        self._split = manifest.split(split)
        if not self._split.samples:
            raise DatasetError(f"{self._root}: the split {split!r} has no samples; prepare the data set again")
        self._counted = range(rank, len(self._split.shards), world_size)
        self._order = SplitOrder(
            fingerprint=manifest.fingerprint,
            split=split,
            seed=seed,
            samples=self._split.samples,
            global_batch=global_batch,
            block_samples=self._data.block_samples,
            window_blocks=self._data.window_blocks,
            last_batch=self._data.last_batch if shuffled else "pad",
            shuffled=shuffled,
        )
        self.classes = manifest.classes
        self._reads = Reads(
            deadline_s=self._data.read_deadline_s,
            hedge_percentile=self._data.hedge_percentile,
            in_flight=InFlight(
                min(2, self._data.read_threads), self._data.read_threads, min(8, self._data.read_threads)
            ),
        )
        self._cache = BlockCache(self._data.cache_dir, self._data.cache_mb * 2**20) if self._data.cache_dir else None
        self._settings = PipelineSettings(
            ShardReader(self._root, self._split, reads=self._reads, cache=self._cache, block=self._data.block_samples),
            self._order.of,
            _Makers(
                self._data, self._decoder, shuffled, decoder is None and shuffled and self._data.resizing is not None
            ),
            self._micro_batches,
            micro_batch,
            seed,
            read_threads=self._data.read_threads,
            decode_threads=self._data.decode_threads,
            memory_bytes=self._data.memory_mb * 2**20,
        )
        self._epoch, self._step, self._seeks = 0, 0, 0
        self._maker: BatchMaker | None = None
        self._most_held_bytes, self._decode_s = 0, 0.0
        self._live: list[Pipeline] = []
        self._idle: Pipeline | None = None
        """between two epochs: the live one that goes on"""
        self._finalizer: weakref.finalize[..., Loader] | None = None
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
            epochs=recipe.schedule.epochs,
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
        """Samples of this epoch that were replaced, or in an evaluation left out, as they could not be decoded."""
        return self._maker.corrupt if self._maker else 0

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
        batches = (AHEAD + 2) * self._micro_batch * self._decoder.empty(1).nbytes
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
            "decode_s": self._decode_s + sum(pipeline.decode_s for pipeline in self._live),
        }

    def order(self, epoch: int) -> EpochOrder:
        """The order of ``epoch``: which sample each slot takes at each step."""
        return self._order.of(epoch)

    def label_counts(self) -> Iterator[LabelCounts]:
        """Samples of each label, int64 [classes], in each of this rank's part of the shards; reads no sample.

        The sum over all ranks counts the split. Raises while iterating, as reading does.
        """
        return label_counts(self._settings.reader, self._counted, len(self.classes), threads=self._data.read_threads)

    def state_dict(self) -> dict[str, Any]:
        """The position of the first step that this rank has not been given in full, and the order that it is in.

        ``{"epoch", "step", "order": {"fingerprint", "split", "seed", …}}``; see :class:`.position.SplitOrder`. Rank,
        world size and micro-batch are not part of it: the order does not depend on them.
        """
        return {"epoch": self._epoch, "step": self._step, "order": dataclasses.asdict(self._order)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Seek to a position, at which the next iteration starts; reads nothing. One that is running goes on as it was.

        ``order`` may be missing, as in states of earlier versions: then only the position is checked.

        Raises:
            ValueError: the position is in no epoch, or in that of another data set, split, seed or size.
        """
        self._epoch, self._step = self._order.position_in(state)
        self._seeks += 1

    def close(self) -> None:
        """Stop reading, and release the node's cache, whose blocks are kept; also done when the process exits.

        An iteration that is running ends with RuntimeError at its next batch.
        """
        self._take_idle()
        for pipeline in list(self._live):
            self._retire(pipeline)
        if self._cache:
            self._cache.close()

    def __iter__(self) -> Iterator[Batch]:
        self._seeks += 1
        epoch, seeks = self._epoch, self._seeks
        pipeline = self._pipeline_at((epoch, self._step))
        self._maker = pipeline.maker(epoch)
        pipeline.forget_before(epoch)
        try:
            while pipeline.position[0] == epoch and (batch := pipeline.take()) is not None:
                self._most_held_bytes = max(self._most_held_bytes, pipeline.most_bytes)
                if seeks == self._seeks:
                    self._epoch, self._step = pipeline.position
                yield batch
        finally:
            if not pipeline.is_closed and pipeline.position[0] > epoch and self._reads_on(pipeline.position[0]):
                self._keep(pipeline)
            else:
                self._retire(pipeline)

    def _reads_on(self, epoch: int) -> bool:
        """Whether ``epoch`` is read while the loop is in the one before, or between the two."""
        return self._shuffled and (self._epochs is None or epoch < self._epochs)

    def _pipeline_at(self, position: tuple[int, int]) -> Pipeline:
        idle, following = self._take_idle(), position[0] + 1
        if idle is not None and idle.position == position:
            return idle
        if idle is not None:
            self._retire(idle)
        pipeline = Pipeline(self._settings, position, self._epochs if self._reads_on(following) else following)
        self._live.append(pipeline)
        return pipeline

    def _keep(self, pipeline: Pipeline) -> None:
        if (other := self._take_idle()) is not None:
            self._retire(other)
        self._idle, self._finalizer = pipeline, weakref.finalize(self, pipeline.close)

    def _take_idle(self) -> Pipeline | None:
        if self._finalizer is not None:
            self._finalizer.detach()
        pipeline, self._idle, self._finalizer = self._idle, None, None
        return pipeline

    def _retire(self, pipeline: Pipeline) -> None:
        pipeline.close()
        with contextlib.suppress(ValueError):  # another thread has retired it
            self._live.remove(pipeline)
            self._decode_s += pipeline.decode_s


@dataclasses.dataclass(frozen=True)
class _Makers:
    """Makes what makes an epoch's batches; with ``follows_epoch`` the size of images is a function of the epoch.

    An evaluation leaves out what it cannot decode: another sample in its place would count twice.
    """

    data: Data
    decoder: Decoder
    is_training: bool
    follows_epoch: bool

    def __call__(self, epoch: int) -> BatchMaker:
        data, decoder = self.data, self.decoder
        if self.follows_epoch:
            size = data.image_size_at(epoch)
            if isinstance(decoder, TrainingImagesOnGpu):  # this thread's current device may be another
                decoder = decoder.sized(size)
            else:
                sized = data.model_copy(update={"image_size": size, "resizing": None})
                decoder = _image_decoder(sized, None, is_training=True)
        # nvJPEG is fastest with many images in a call; on the CPU each thread gets a part
        parts = 1 if isinstance(decoder, TrainingImagesOnGpu) else data.decode_threads
        on_corrupt = data.on_corrupt if self.is_training or data.on_corrupt == "fail" else "leave_out"
        return BatchMaker(decoder, parts=parts, on_corrupt=on_corrupt, corrupt_limit=data.corrupt_limit)


def _image_decoder(data: Data, resize: int | None, *, is_training: bool) -> Decoder:
    if is_training and data.decode == "gpu":
        return TrainingImagesOnGpu(data.image_size, data.augment)
    if is_training:
        return TrainingImages(data.image_size, data.augment, scales_in_dct=data.scales_in_dct)
    return EvaluationImages(data.image_size, resize or round(data.image_size / 0.875))
