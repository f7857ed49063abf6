"""The samples of some slots, step by step, read ahead of need.

    windows of all slots, by the step that first needs them  ──planner thread──▶  range reads, many in flight
    range reads  ──reader threads──▶  checked samples, waiting in their windows  ──▶  one sample a slot and step

The planner admits windows in the order of need while the bytes in flight and waiting stay under ``memory_bytes``; a
window that the step under way needs is admitted in any case, so that a bound that is too small makes the stream slow
but never still. Nothing of the order depends on threads or time.
"""

from __future__ import annotations

import heapq
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass

from stoker.dataset.order import EpochOrder, Window
from stoker.dataset.samples import Sample, ShardReader

__all__ = ["BlockStream", "Streamed"]


@dataclass(frozen=True)
class Streamed:
    """A sample and the samples that were read with it, its block: where a replacement for a corrupt one comes from."""

    sample: Sample
    block: list[Sample]


class _Held:
    """A window, the reads that fill it, and what it counts against the bound."""

    def __init__(self, window: Window, bytes_: int) -> None:
        self.window = window
        self.bytes = bytes_
        self.reads: list[Future[list[Sample]]] = []

    def at(self, step: int) -> Streamed:
        """The slot's sample at ``step``; waits for the read that brings it, and for no other."""
        number = int(self.window.samples[step - self.window.first_step])
        for (first, stop), read in zip(self.window.pieces, self.reads, strict=True):
            if first <= number < stop:
                block = read.result()
                return Streamed(block[number - first], block)
        raise AssertionError(f"sample {number} is in no piece of its window")


class BlockStream:
    """Iterates over the steps of an epoch from ``from_step`` on; use it as a context manager, so that threads end."""

    def __init__(
        self,
        reader: ShardReader,
        order: EpochOrder,
        slots: Sequence[int],
        *,
        from_step: int = 0,
        read_threads: int = 8,
        memory_bytes: int = 2**30,
    ) -> None:
        self._reader = reader
        self._order = order
        self._slots = list(slots)
        self._from_step = from_step
        self._memory_bytes = memory_bytes
        self._pool = ThreadPoolExecutor(read_threads, thread_name_prefix="stoker-read")
        self._planner = threading.Thread(target=self._plan, name="stoker-plan", daemon=True)
        self._change = threading.Condition()
        self._admitted: dict[int, deque[_Held]] = {slot: deque() for slot in self._slots}
        self._held_bytes = 0
        self._step = from_step
        self._is_closed = False
        self._failure: BaseException | None = None
        self._most_bytes = 0

    @property
    def most_bytes(self) -> int:
        """The most that was ever in flight and waiting, in bytes, as the manifest expects it."""
        return self._most_bytes

    def __enter__(self) -> BlockStream:
        self._planner.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._change:
            self._is_closed = True
            self._change.notify_all()
        self._planner.join()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def __iter__(self) -> Iterator[list[Streamed | None]]:
        """For each step the samples of the slots, in their order; None where a slot is padding."""
        current: dict[int, _Held | None] = dict.fromkeys(self._slots)
        for step in range(self._from_step, self._order.steps):
            with self._change:
                self._step = step
                self._change.notify_all()
            found: list[Streamed | None] = []
            for slot in self._slots:
                first, stop = self._order.run(slot)
                if first + step >= stop:
                    found.append(None)
                    continue
                held = current[slot]
                if held is None or step >= held.window.stop_step:
                    if held is not None:
                        self._release(held)
                    held = current[slot] = self._next(slot)
                found.append(held.at(step))
            yield found
        for held in current.values():
            if held is not None:
                self._release(held)

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

    def _plan(self) -> None:
        try:
            upcoming = [self._order.windows(slot, self._from_step) for slot in self._slots]
            heads = [(w.first_step, i, w) for i, ws in enumerate(upcoming) if (w := next(ws, None)) is not None]
            heapq.heapify(heads)
            while heads:
                _, i, window = heads[0]
                if not self._admit(window):
                    return
                following = next(upcoming[i], None)
                if following is None:
                    heapq.heappop(heads)
                else:
                    heapq.heapreplace(heads, (following.first_step, i, following))
        except BaseException as error:
            with self._change:
                self._failure = error
                self._change.notify_all()

    def _admit(self, window: Window) -> bool:
        held = _Held(window, sum(self._reader.expected_bytes(a, b) for a, b in window.pieces))
        with self._change:
            while (
                not self._is_closed
                and window.first_step > self._step
                and self._held_bytes + held.bytes > self._memory_bytes
            ):
                self._change.wait()
            if self._is_closed:
                return False
            self._held_bytes += held.bytes
            self._most_bytes = max(self._most_bytes, self._held_bytes)
        held.reads = [self._pool.submit(self._reader.read, first, stop) for first, stop in window.pieces]
        with self._change:
            self._admitted[window.slot].append(held)
            self._change.notify_all()
        return True
