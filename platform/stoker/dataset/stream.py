"""Prefetch the samples of some slots, step by step and across epochs, within a memory bound.

    windows of all slots, by the step that first needs them  ──scheduler thread──▶  range reads, many in flight
    range reads, the most urgent first  ──reader threads──▶  checked samples  ──▶  one sample a slot and step

The scheduler admits windows in the order of need while the bytes in flight and waiting stay under ``memory_bytes``; a
window that the current step needs is admitted in any case, so that a bound that is too small makes the stream slow
but never blocks it. A start or a seek costs no more than a batch: the samples of the first step are read by themselves,
before their blocks, nothing is read until all of them are requested, and then one block at a time until the second
step is requested. The next epoch's windows follow this one's in the same queue, so its first step is an ordinary one.
The order does not depend on threads or timing.

Steps are counted over epochs here: step s of epoch e is e * (steps of an epoch) + s.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from functools import partial

from stoker.dataset.order import EpochOrder, Window
from stoker.dataset.read_pool import ReadPool
from stoker.dataset.samples import Sample, ShardReader

__all__ = ["BlockStream", "Streamed"]


@dataclass(frozen=True, slots=True)
class _Piece:
    """Contiguous samples ``first`` to ``stop`` of a window, and the read that brings them from ``read_first`` on."""

    first: int
    stop: int
    read_first: int
    read: Future[list[Sample]]


@dataclass(frozen=True, slots=True)
class Streamed:
    """A sample, and the piece of its window that it was read with."""

    sample: Sample
    piece: _Piece

    @property
    def block(self) -> list[Sample]:
        """The samples of its block, including itself, from which a corrupt one is replaced. May block."""
        begin = self.piece.read_first
        return self.piece.read.result()[self.piece.first - begin : self.piece.stop - begin]


class _Held:
    """A window, the reads that fill it, and its size in bytes, which counts against the bound.

    ``first_step`` is the window's, counted over epochs.
    """

    def __init__(self, window: Window, first_step: int, bytes_: int) -> None:
        self.window = window
        self.first_step, self.stop_step = first_step, first_step + len(window.samples)
        self.bytes = bytes_
        self.pieces: list[_Piece] = []
        self.alone: tuple[int, Future[list[Sample]]] | None = None
        """the step whose sample was read by itself, and that read"""

    def at(self, step: int) -> Streamed:
        """The slot's sample at ``step``; waits for the read that brings it, and for no other."""
        number = int(self.window.samples[step - self.first_step])
        piece = next(p for p in self.pieces if p.first <= number < p.stop)
        if self.alone is not None and self.alone[0] == step:
            return Streamed(self.alone[1].result()[0], piece)
        return Streamed(piece.read.result()[number - piece.read_first], piece)


class BlockStream:
    """Iterates over the steps of ``epochs`` (first, stop) from ``from_step`` of the first on; ``stop`` None: endlessly.

    ``order_of`` gives the order of an epoch; all have the same number of steps. A context manager, which stops its
    threads; whoever waits for a step then gets CancelledError. The consumer may hold the samples of the last
    ``decoding_steps`` steps: a window counts against ``memory_bytes`` until then.
    """

    def __init__(
        self,
        reader: ShardReader,
        order_of: Callable[[int], EpochOrder],
        slots: Sequence[int],
        *,
        epochs: tuple[int, int | None] = (0, 1),
        from_step: int = 0,
        read_threads: int = 16,
        memory_bytes: int = 2**30,
        decoding_steps: int = 0,
    ) -> None:
        self._reader = reader
        self._order_of, self._epochs = order_of, epochs
        order = order_of(epochs[0])
        self._steps, self._runs = order.steps, {slot: order.run(slot) for slot in slots}
        self._slots = list(slots)
        self._from_step = from_step = epochs[0] * order.steps + from_step
        self._memory_bytes, self._decoding_steps = memory_bytes, decoding_steps
        self._pool: ReadPool[list[Sample]] = ReadPool(read_threads, from_step)
        self._scheduler = threading.Thread(target=self._schedule, name="stoker-schedule", daemon=True)
        self._change = threading.Condition()
        self._admitted: dict[int, deque[_Held]] = {slot: deque() for slot in self._slots}
        self._held_bytes = 0
        self._step = from_step
        self._is_closed = False
        self._failure: BaseException | None = None
        self._most_bytes = 0

    @property
    def most_bytes(self) -> int:
        """Peak of the bytes in flight and waiting, by the sizes that the manifest gives."""
        return self._most_bytes

    def __enter__(self) -> BlockStream:
        self._scheduler.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the threads; may be called more than once, and by any thread."""
        with self._change:
            self._is_closed = True
            self._change.notify_all()
        self._pool.close()
        if self._scheduler is not threading.current_thread():  # the garbage collector may close it in any thread
            self._scheduler.join()

    def __iter__(self) -> Iterator[list[Streamed | None]]:
        """For each step the samples of the slots, in their order; None where a slot is padding."""
        stop = None if self._epochs[1] is None else self._epochs[1] * self._steps
        current: dict[int, _Held | None] = dict.fromkeys(self._slots)
        ended: deque[tuple[int, _Held]] = deque()
        for step in itertools.takewhile(lambda step: stop is None or step < stop, itertools.count(self._from_step)):
            if step > self._from_step:
                self._pool.open()
            while ended and ended[0][0] + self._decoding_steps <= step:
                self._release(ended.popleft()[1])
            with self._change:
                self._step = step
                self._change.notify_all()
            found: list[Streamed | None] = []
            for slot in self._slots:
                first, last = self._runs[slot]
                if first + step % self._steps >= last:
                    found.append(None)
                    continue
                held = current[slot]
                if held is None or step >= held.stop_step:
                    if held is not None:
                        ended.append((step, held))
                    held = current[slot] = self._next(slot)
                found.append(held.at(step))
            yield found

    def _next(self, slot: int) -> _Held:
        with self._change:
            while not self._admitted[slot]:
                if self._failure is not None:
                    raise self._failure
                if self._is_closed:
                    raise CancelledError
                self._change.wait()
            return self._admitted[slot].popleft()

    def _release(self, held: _Held) -> None:
        with self._change:
            self._held_bytes -= held.bytes
            self._change.notify_all()

    def _schedule(self) -> None:
        try:
            for first_step, window in self._windows():
                if first_step > self._from_step:
                    self._pool.begin()
                if not self._admit(window, first_step):
                    return
        except BaseException as error:
            with self._change:
                self._failure = error
                self._change.notify_all()
        finally:
            self._pool.begin()

    def _windows(self) -> Iterator[tuple[int, Window]]:
        """The windows of all slots by the step that first needs them, each with its first step."""
        for epoch in itertools.count(self._epochs[0]):
            if epoch == self._epochs[1]:
                return
            order, before = self._order_of(epoch), epoch * self._steps
            upcoming = [order.windows(slot, max(0, self._from_step - before)) for slot in self._slots]
            heads = [(w.first_step, i, w) for i, ws in enumerate(upcoming) if (w := next(ws, None)) is not None]
            heapq.heapify(heads)
            while heads:
                first_step, i, window = heads[0]
                yield before + first_step, window
                following = next(upcoming[i], None)
                if following is None:
                    heapq.heappop(heads)
                else:
                    heapq.heapreplace(heads, (following.first_step, i, following))

    def _admit(self, window: Window, first_step: int) -> bool:
        """Wait until there is room for ``window``, and start its reads; False if the stream was closed meanwhile."""
        reads = self._reads_of(window, first_step)
        held = _Held(window, first_step, sum(self._reader.expected_bytes(r.first, r.stop) for r in reads))
        with self._change:
            while (
                not self._is_closed and first_step > self._step and self._held_bytes + held.bytes > self._memory_bytes
            ):
                self._change.wait()
            if self._is_closed:
                return False
            self._held_bytes += held.bytes
            self._most_bytes = max(self._most_bytes, self._held_bytes)
        if first_step <= self._from_step < min(read.needed_at for read in reads):
            number = int(window.samples[self._from_step - first_step])
            alone = partial(self._reader.read, number, number + 1, is_alone=True)
            held.alone = self._from_step, self._pool.submit(self._from_step, alone)
        for read in reads:
            future = self._pool.submit(read.needed_at, partial(self._reader.read, read.first, read.stop))
            held.pieces += [_Piece(first, stop, read.first, future) for first, stop in read.pieces]
        with self._change:
            self._admitted[window.slot].append(held)
            self._change.notify_all()
        return True

    def _reads_of(self, window: Window, first_step: int) -> list[_Read]:
        """What to read for ``window``: neighbouring pieces together, nothing before the first step.

        The first step's own sample does not count where others of its piece follow: it is read alone, too.
        """
        needed: dict[tuple[int, int], int] = {}
        ahead = max(0, self._from_step - first_step)
        steps = range(first_step + ahead, first_step + len(window.samples))
        own = [next(p for p in window.pieces if p[0] <= n < p[1]) for n in window.samples[ahead:].tolist()]
        for step, piece in zip(steps, own, strict=True):
            if step > self._from_step:
                needed.setdefault(piece, step)
        needed.setdefault(own[0], steps[0])
        reads: list[_Read] = []
        for piece in sorted(needed):
            before = reads[-1] if reads else None
            if before is not None and before.stop == piece[0]:
                urgency = min(before.needed_at, needed[piece])
                reads[-1] = _Read(before.first, piece[1], urgency, (*before.pieces, piece))
            else:
                reads.append(_Read(*piece, needed[piece], (piece,)))
        return reads


@dataclass(frozen=True, slots=True)
class _Read:
    """One read of the samples ``first`` to ``stop``, first needed at step ``needed_at``."""

    first: int
    stop: int
    needed_at: int
    pieces: tuple[tuple[int, int], ...]
