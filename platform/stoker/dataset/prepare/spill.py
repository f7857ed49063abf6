"""Shuffle a source whose samples are only cheap to read in runs: an external sort in one pass, or more for many shards.

The first pass reads neighbouring runs in their order. Each of its tasks writes one object ``build/spill/<n>.bin`` with
their samples sorted by group, a *group* being some neighbouring shards; the samples of a group there are a *segment*.
After the last pass a group is one shard, and each shard reads its segments, one range read each. Any pass between reads
the segments of a group, as many bytes at a time as a task of the first, and writes them sorted into smaller groups,
below ``build/spill/pass-<p>/``. A task holds one spill or one shard in memory, never more of the data set.

A segment is a spill's fraction of a group's smaller groups, at most ``_FAN_OUT`` of them. In one pass a terabyte in
shards of 64 MB would take spills of 1.6 GB for segments of 100 kB; in those of 128 MB nearly each is a single image.

A segment is 8 bytes with the length N of its header (unsigned, little-endian), N bytes of JSON
``[[path, bytes, shard], ...]`` and then the images, concatenated.
"""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

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
_FAN_OUT = 1024
"""most segments of a spill: of 128 MB, the usual size, 125 kB each"""
_RECORD_VERSION = 2

Segment = tuple[int, int, int, int]
"""(number of the spill, first byte, byte after the last, xxh3_64)"""
Sample = tuple[str, memoryview, int]
"""(path, bytes, shard numbered through all splits)"""


@dataclass(frozen=True)
class _FromSource:
    """Samples of the source, to be sorted into groups of ``width`` shards."""

    number: int
    root: Location
    width: int
    source: RunReader
    entries: tuple[Entry, ...]
    shards: tuple[int, ...]
    """of each entry, numbered through all splits"""

    @property
    def digest(self) -> str:
        return digest(_RECORD_VERSION, self.width, self.entries, self.shards)

    def read(self) -> list[Sample]:
        images = itertools.chain.from_iterable(map(self.source.read_run, runs(self.entries)))
        found = zip(self.entries, images, self.shards, strict=True)
        return [(entry.path, memoryview(image), shard) for entry, image, shard in found]


@dataclass(frozen=True)
class _FromSpills:
    """Segments of the pass before, whose objects are below ``before``, to be sorted into groups of ``width`` shards."""

    number: int
    root: Location
    width: int
    before: Location
    segments: tuple[Segment, ...]

    @property
    def digest(self) -> str:
        return digest(_RECORD_VERSION, self.width, self.segments)

    def read(self) -> list[Sample]:
        return _read_segments(self.before, self.segments)


@dataclass(frozen=True, eq=False)
class _Spilled:
    """One spill: segment i, of group ``groups[i]``, is at ``[ends[i], ends[i + 1])``; its xxh3_64 is ``sums[i]``."""

    number: int
    groups: NDArray[np.int32]
    ends: NDArray[np.int64]
    sums: NDArray[np.uint64]
    samples: int
    was_there: bool = False

    @classmethod
    def of(cls, number: int, record: dict[str, Any], *, was_there: bool = False) -> _Spilled:
        columns = np.array(record["groups"], np.int32), np.array(record["ends"], np.int64)
        return cls(number, *columns, np.array(record["sums"], np.uint64), record["samples"], was_there)


class Spills:
    """The locations of the segments of each group: 28 bytes a segment."""

    def __init__(self, root: Location, first_shard: dict[str, int], spilled: list[_Spilled]) -> None:
        self._root = root
        self._first_shard = first_shard
        spilled.sort(key=lambda one: one.number)
        group = np.concatenate([one.groups for one in spilled])
        order = np.argsort(group, kind="stable")
        numbers = [np.full(len(one.groups), one.number, np.int32) for one in spilled]
        self._group = group[order]
        self._columns = (
            np.concatenate(numbers)[order],
            np.concatenate([one.ends[:-1] for one in spilled])[order],
            np.concatenate([one.ends[1:] for one in spilled])[order],
            np.concatenate([one.sums for one in spilled])[order],
        )

    def reader(self, plan: ShardPlan) -> SpilledShard:
        """The reader of this shard's samples, after the last pass."""
        return SpilledShard(self._root, self._segments(self._first_shard[plan.split] + plan.number))

    def _segments(self, group: int) -> tuple[Segment, ...]:
        rows = slice(*np.searchsorted(self._group, [group, group + 1]).tolist())
        return tuple(zip(*(column[rows].tolist() for column in self._columns), strict=True))

    def tasks(self, root: Location, width: int, spill_bytes: int) -> Iterator[_FromSpills]:
        """The tasks of the next pass: segments of a group, of about ``spill_bytes`` together."""
        numbers = itertools.count()
        for group in np.unique(self._group).tolist():
            chosen: list[Segment] = []
            size = 0
            for segment in self._segments(group):
                chosen.append(segment)
                size += segment[2] - segment[1]
                if size >= spill_bytes:
                    yield _FromSpills(next(numbers), root, width, self._root, tuple(chosen))
                    chosen, size = [], 0
            if chosen:
                yield _FromSpills(next(numbers), root, width, self._root, tuple(chosen))


class SpilledShard:
    """Reads the samples of one shard from its segments, all of them at the first read."""

    def __init__(self, root: Location, segments: tuple[Segment, ...]) -> None:
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
                self._images = {path: image for path, image, _ in _read_segments(self._root, self._segments)}
            return bytes(self._images[entry.path])


def _read_segments(root: Location, segments: Sequence[Segment]) -> list[Sample]:
    with ThreadPoolExecutor(_READERS, thread_name_prefix="stoker-spill") as pool:
        return list(itertools.chain.from_iterable(pool.map(partial(_read_segment, root), segments)))


def _read_segment(root: Location, segment: Segment) -> list[Sample]:
    number, start, stop, sum_ = segment

    is_damaged = False

    def check(data: memoryview) -> None:
        nonlocal is_damaged
        is_damaged = xxhash.xxh3_64_intdigest(data) != sum_
        if is_damaged:
            raise BadBody("its checksum differs")

    where = root / f"{number:06d}.bin"
    try:
        data = where.read_range(start, stop, check)
    except StorageError:
        if not is_damaged:
            raise
        (root / f"{number:06d}.json").delete()
        raise DatasetError(
            f"{where}: bytes {start} to {stop} are not what was written; run the same command again, which rewrites "
            "them"
        ) from None
    at = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")
    found = []
    for path, length, shard in json.loads(bytes(data[_LENGTH_BYTES:at])):
        found.append((path, data[at : at + length], shard))
        at += length
    return found


def spill(source: Source, plans: list[SplitPlan], root: Location, map_: Map, spill_bytes: int) -> Spills:
    """Run all passes, or the rest of them after an interruption; objects are written below ``root``."""
    first_shard = _first_shards(plans)
    first_width, *widths = _widths(sum(map(len, plans)), _FAN_OUT)
    progress = Progress((1 + len(widths)) * sum(len(plan.entries) for plan in plans), "sorted")

    def run(tasks: Iterable[_FromSource | _FromSpills]) -> list[_Spilled]:
        spilled = []
        for one in map_(_spill, tasks):
            spilled.append(one)
            progress.advance(one.samples, int(one.ends[-1]), is_fresh=not one.was_there)
        return spilled

    spills = Spills(root, first_shard, run(_source_tasks(source, plans, root, first_width, spill_bytes)))
    for number, width in enumerate(widths, start=2):
        place = root / f"pass-{number}"
        spills = Spills(place, first_shard, run(spills.tasks(place, width, spill_bytes)))
    progress.close()
    return spills


def _widths(shards: int, fan_out: int) -> list[int]:
    """Shards of a group after each pass, 1 in the end: in as few as cut no group into more than ``fan_out``, evenly."""
    passes = 1
    while fan_out**passes < shards:
        passes += 1
    factor = 1
    while factor**passes < shards:
        factor += 1
    return [factor**left for left in reversed(range(passes))]


def _first_shards(plans: list[SplitPlan]) -> dict[str, int]:
    """Where the shards of each split begin, numbered through all splits."""
    begun = itertools.accumulate(map(len, plans[:-1]), initial=0)
    return {plan.split: first for plan, first in zip(plans, begun, strict=True)}


def _source_tasks(
    source: Source, plans: list[SplitPlan], root: Location, width: int, spill_bytes: int
) -> Iterator[_FromSource]:
    """Group whole runs to about ``spill_bytes``; a run that is in several splits is read once for each."""
    numbers, reader, first_shard = itertools.count(), cast("RunReader", source.reader), _first_shards(plans)
    for plan in plans:
        shard_of: NDArray[np.int32] = plan.shard_of() + first_shard[plan.split]
        entries: list[Entry] = []
        size, start = 0, 0
        for stop, entry in enumerate(plan.entries):
            if size >= spill_bytes and run_of(entry) != run_of(entries[-1]):
                shards = tuple(shard_of[start:stop].tolist())
                yield _FromSource(next(numbers), root, width, reader, tuple(entries), shards)
                entries, size, start = [], 0, stop
            entries.append(entry)
            size += entry.bytes
        yield _FromSource(next(numbers), root, width, reader, tuple(entries), tuple(shard_of[start:].tolist()))


def _spill(task: _FromSource | _FromSpills) -> _Spilled:
    where, record = task.root / f"{task.number:06d}.bin", task.root / f"{task.number:06d}.json"
    digest_ = task.digest
    try:
        stored = json.loads(record.read())
        if stored["digest"] == digest_ and where.size() == stored["ends"][-1]:
            return _Spilled.of(task.number, stored, was_there=True)
    except (FileNotFoundError, ValueError, KeyError, TypeError, IndexError):
        pass
    samples = task.read()
    samples.sort(key=lambda sample: sample[2] // task.width)  # stable
    parts: list[bytes | memoryview] = []
    written: list[bytes | memoryview]
    groups, ends, sums = [], [0], []
    for group, members in itertools.groupby(samples, lambda sample: sample[2] // task.width):
        segment = list(members)
        header = json.dumps([(path, len(image), shard) for path, image, shard in segment]).encode()
        written = [len(header).to_bytes(_LENGTH_BYTES, "little"), header, *(image for _, image, _ in segment)]
        hasher = xxhash.xxh3_64()
        for part in written:
            hasher.update(part)
        parts += written
        groups.append(group)
        sums.append(hasher.intdigest())
        ends.append(ends[-1] + sum(map(len, written)))
    where.write(b"".join(parts))
    found = {"digest": digest_, "groups": groups, "ends": ends, "sums": sums, "samples": len(samples)}
    record.write(json.dumps(found).encode())
    return _Spilled.of(task.number, found)
