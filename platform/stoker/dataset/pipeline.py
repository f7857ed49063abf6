"""Micro-batches of a rank from one position on, across epochs, made ahead of the loop that takes them.

It holds no reference to the loader that owns it, so that a loader that nobody uses any more is collected, and its
threads stop.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from stoker.dataset.ahead import ahead
from stoker.dataset.batch import Batch, BatchMaker
from stoker.dataset.decode.pool import decode_pool
from stoker.dataset.order import EpochOrder, key_of
from stoker.dataset.samples import ShardReader
from stoker.dataset.stream import BlockStream

__all__ = ["AHEAD", "Pipeline", "PipelineSettings"]

AHEAD = 4
"""micro-batches that are decoded ahead of the training loop"""


@dataclass(frozen=True)
class PipelineSettings:
    """What stays the same from epoch to epoch.

    ``order_of`` and ``maker_of`` give the order of an epoch and what makes its batches; ``micro_batches`` of
    ``micro_batch`` samples each are this rank's.
    """

    reader: ShardReader
    order_of: Callable[[int], EpochOrder]
    maker_of: Callable[[int], BatchMaker]
    micro_batches: range
    micro_batch: int
    seed: int
    read_threads: int
    decode_threads: int
    memory_bytes: int


class Pipeline:
    """The micro-batches from ``position`` (epoch, step) on, before the epoch ``stop_epoch``; None: endlessly.

    One loop at a time takes them by :meth:`take`; ``position`` moves with it.
    """

    def __init__(self, settings: PipelineSettings, position: tuple[int, int], stop_epoch: int | None) -> None:
        self._settings, self._start, self.position = settings, position, position
        self._makers: dict[int, BatchMaker] = {}
        self._past_decode_s = 0.0
        self._lock = threading.RLock()
        mine = settings.micro_batches
        self._stream = BlockStream(
            settings.reader,
            settings.order_of,
            range(mine.start * settings.micro_batch, mine.stop * settings.micro_batch),
            epochs=(position[0], stop_epoch),
            from_step=position[1],
            read_threads=settings.read_threads,
            memory_bytes=settings.memory_bytes,
            decoding_steps=-(-(AHEAD + 2) // len(mine)),
        )
        self._steps = settings.order_of(position[0]).steps
        self._pool = decode_pool(settings.decode_threads)
        self._ready = ahead(self._batches(), AHEAD, self._stream.close)
        self.is_closed = False
        self._stream.__enter__()

    @property
    def most_bytes(self) -> int:
        """Peak of the encoded bytes in flight and waiting."""
        return self._stream.most_bytes

    @property
    def decode_s(self) -> float:
        """Seconds spent decoding so far, summed over threads."""
        with self._lock:
            return self._past_decode_s + sum(maker.decode_s for maker in self._makers.values())

    def maker(self, epoch: int) -> BatchMaker:
        """What makes the batches of ``epoch``."""
        with self._lock:
            if epoch not in self._makers:
                self._makers[epoch] = self._settings.maker_of(epoch)
            return self._makers[epoch]

    def take(self) -> Batch | None:
        """The next micro-batch; None after the last epoch.

        Raises:
            DatasetError, StorageError: it cannot be made.
            RuntimeError: the pipeline is closed, by this thread or another.
        """
        try:
            batch = None if self.is_closed else next(self._ready, None)
        except Exception:
            if not self.is_closed:
                raise
            batch = None
        if self.is_closed:  # whatever was under way ended somehow
            raise RuntimeError("the loader was closed while it was iterated over")
        if batch is not None and batch.micro_batch == self._settings.micro_batches.stop - 1:
            is_end = batch.step + 1 == self._steps
            self.position = (batch.epoch + 1, 0) if is_end else (batch.epoch, batch.step + 1)
        return batch

    def forget_before(self, epoch: int) -> None:
        """Drop what made the batches of earlier epochs."""
        with self._lock:
            for past in [number for number in self._makers if number < epoch]:
                self._past_decode_s += self._makers.pop(past).decode_s

    def close(self) -> None:
        """Stop all threads; a read or a decoding that runs finishes by itself."""
        self.is_closed = True
        self._stream.close()
        with suppress(ValueError):  # another thread is in it, and ends it: the stream is closed
            self._ready.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _batches(self) -> Iterator[Callable[[], Batch]]:
        settings, (epoch, step) = self._settings, self._start
        is_first = True
        for samples in self._stream:
            if step == self._steps:
                epoch, step = epoch + 1, 0
            maker, key = self.maker(epoch), key_of("augment", settings.seed, epoch)
            for i, number in enumerate(settings.micro_batches):
                members = samples[i * settings.micro_batch : (i + 1) * settings.micro_batch]
                made = maker.start(self._pool, members, key, (epoch, step, number))
                yield made
            if is_first:  # the stream starts its other reads at the next request: not while this batch is made
                is_first = False
                with suppress(Exception):  # raised again where the batch is consumed
                    made()
            step += 1
