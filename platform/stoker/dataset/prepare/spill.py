"""Shuffle a source whose samples are only cheap to read in runs: an external sort in two passes.

Pass 1: each task reads neighbouring runs in their order and writes one object ``build/spill/<n>.bin`` with their
samples sorted by their target shard; the samples of a shard there are a *segment*. Pass 2: each shard reads
its segments, one range read each. A task holds one spill or one shard in memory, never more of the data set.

A segment is 8 bytes with the length N of its header (unsigned, little-endian), N bytes of JSON ``[[path, bytes], ...]``
and then the images, concatenated.
"""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import cast

import numpy as np
import xxhash
from numpy.typing import NDArray

from stoker.dataset.prepare.entries import Entry
from stoker.dataset.prepare.plan import ShardPlan, SplitPlan, digest
from stoker.dataset.prepare.progress import Progress
from stoker.dataset.prepare.sources.base import RunReader, Source, run_of, runs
from stoker.dataset.prepare.workers import Map
from stoker.errors import DatasetError, StorageError
from stoker.storage import Location
from stoker.storage.retry import BadBody

__all__ = ["Spills", "spill"]

_READERS = 8
_LENGTH_BYTES = 8


@dataclass(frozen=True)
class _Task:
    number: int
    source: RunReader
    root: Location
    entries: tuple[Entry, ...]
    targets: tuple[int, ...]
    """the shard of each entry, numbered through all splits"""

    @property
    def where(self) -> Location:
        return self.root / f"{self.number:06d}.bin"

    @property
    def record(self) -> Location:
        return self.root / f"{self.number:06d}.json"

    @property
    def digest(self) -> str:
        return digest(self.entries, self.targets)


@dataclass(frozen=True)
class _Spilled:
    """One spill: segment i, of shard ``shards[i]``, is at ``[ends[i], ends[i + 1])``; its xxh3_64 is ``sums[i]``."""

    number: int
    shards: list[int]
    ends: list[int]
    sums: list[int]
    samples: int
    was_there: bool = False


class Spills:
    """The locations of each shard's segments: 28 bytes a segment."""

    def __init__(self, root: Location, first_shard: dict[str, int], spilled: list[_Spilled]) -> None:
        self._root = root
        self._first_shard = first_shard
        spilled.sort(key=lambda one: one.number)
        shard = np.array([shard for one in spilled for shard in one.shards], np.int32)
        order = np.argsort(shard, kind="stable")
        self._shard = shard[order]
        self._spill = np.array([one.number for one in spilled for _ in one.shards], np.int32)[order]
        self._start = np.array([end for one in spilled for end in one.ends[:-1]], np.int64)[order]
        self._stop = np.array([end for one in spilled for end in one.ends[1:]], np.int64)[order]
        self._sum = np.array([sum_ for one in spilled for sum_ in one.sums], np.uint64)[order]

    def reader(self, plan: ShardPlan) -> SpilledShard:
        """The reader of this shard's samples."""
        shard = self._first_shard[plan.split] + plan.number
        rows = slice(*np.searchsorted(self._shard, [shard, shard + 1]).tolist())
        columns = (self._spill, self._start, self._stop, self._sum)
        return SpilledShard(self._root, tuple(zip(*(column[rows].tolist() for column in columns), strict=True)))


class SpilledShard:
    """Reads the samples of one shard from its segments, all of them at the first read."""

    def __init__(self, root: Location, segments: tuple[tuple[int, int, int, int], ...]) -> None:
        self._root = root
        self._segments = segments
        self._lock = threading.Lock()
        self._images: dict[str, memoryview] | None = None

    def __reduce__(self) -> tuple[object, ...]:
        return SpilledShard, (self._root, self._segments)

    def with_timeout(self, timeout_s: float) -> SpilledShard:
        return SpilledShard(self._root.with_timeout(timeout_s), self._segments)

    def read(self, entry: Entry) -> bytes:
        with self._lock:
            if self._images is None:
                with ThreadPoolExecutor(_READERS, thread_name_prefix="stoker-spill") as pool:
                    self._images = dict(itertools.chain.from_iterable(pool.map(self._segment, self._segments)))
            return bytes(self._images[entry.path])

    def _segment(self, segment: tuple[int, int, int, int]) -> list[tuple[str, memoryview]]:
        number, start, stop, sum_ = segment

        is_damaged = False

        def check(data: bytes) -> None:
            nonlocal is_damaged
            is_damaged = xxhash.xxh3_64_intdigest(data) != sum_
            if is_damaged:
                raise BadBody("its checksum differs")

        where = self._root / f"{number:06d}.bin"
        try:
            data = memoryview(where.read_range(start, stop, check))
        except StorageError:
            if not is_damaged:
                raise
            (self._root / f"{number:06d}.json").delete()
            raise DatasetError(
                f"{where}: bytes {start} to {stop} are not what was written; run the same command again, which "
                "rewrites them"
            ) from None
        at = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")
        found = []
        for path, length in json.loads(bytes(data[_LENGTH_BYTES:at])):
            found.append((path, data[at : at + length]))
            at += length
        return found


def spill(source: Source, plans: list[SplitPlan], root: Location, map_: Map, spill_bytes: int) -> Spills:
    """Run pass 1, or the rest of it after an interruption; objects are written below ``root``."""
    first_shard = dict(
        zip((plan.split for plan in plans), itertools.accumulate(map(len, plans[:-1]), initial=0), strict=True)
    )
    progress = Progress(sum(len(plan.entries) for plan in plans), "sorted")
    spilled = []
    for one in map_(_spill, _tasks(source, plans, first_shard, root, spill_bytes)):
        spilled.append(one)
        progress.advance(one.samples, one.ends[-1], is_fresh=not one.was_there)
    progress.close()
    return Spills(root, first_shard, spilled)


def _tasks(
    source: Source, plans: list[SplitPlan], first_shard: dict[str, int], root: Location, spill_bytes: int
) -> Iterator[_Task]:
    """Group whole runs to about ``spill_bytes``; a run that is in several splits is read once for each."""
    number = 0
    for plan in plans:
        shard_of: NDArray[np.int32] = plan.shard_of() + first_shard[plan.split]
        entries: list[Entry] = []
        size, start = 0, 0
        for stop, entry in enumerate(plan.entries):
            if size >= spill_bytes and run_of(entry) != run_of(entries[-1]):
                yield _Task(
                    number, cast("RunReader", source.reader), root, tuple(entries), tuple(shard_of[start:stop].tolist())
                )
                number, entries, size, start = number + 1, [], 0, stop
            entries.append(entry)
            size += entry.bytes
        yield _Task(number, cast("RunReader", source.reader), root, tuple(entries), tuple(shard_of[start:].tolist()))
        number += 1


def _spill(task: _Task) -> _Spilled:
    try:
        stored = json.loads(task.record.read())
        if stored["digest"] == task.digest and task.where.size() == stored["ends"][-1]:
            return _Spilled(
                task.number, stored["shards"], stored["ends"], stored["sums"], len(task.entries), was_there=True
            )
    except (FileNotFoundError, ValueError, KeyError, TypeError, IndexError):
        pass
    images: list[bytes] = []
    for run in runs(task.entries):
        images += task.source.read_run(run)
    rows = sorted(range(len(images)), key=task.targets.__getitem__)  # stable
    body = bytearray()
    shards, ends, sums = [], [0], []
    for shard, group in itertools.groupby(rows, task.targets.__getitem__):
        members = list(group)
        header = json.dumps([(task.entries[row].path, len(images[row])) for row in members]).encode()
        body += len(header).to_bytes(_LENGTH_BYTES, "little") + header
        for row in members:
            body += images[row]
            images[row] = b""
        shards.append(shard)
        sums.append(xxhash.xxh3_64_intdigest(memoryview(body)[ends[-1] :]))
        ends.append(len(body))
    task.where.write(bytes(body))
    record = {"digest": task.digest, "shards": shards, "ends": ends, "sums": sums}
    task.record.write(json.dumps(record).encode())
    return _Spilled(task.number, shards, ends, sums, len(task.entries))
