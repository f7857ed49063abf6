"""Checksum the contents of a source: to find duplicate images, and to tell whether a source has changed.

Each task reads a run of samples and writes their checksums under ``build/hashes/``, which a resumed preparation
reuses.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
import xxhash
from numpy.typing import NDArray

from stoker.dataset.prepare.entries import Entries, Entry
from stoker.dataset.prepare.plan import digest
from stoker.dataset.prepare.progress import Progress
from stoker.dataset.prepare.sources.base import Reader, RunReader, Source, run_of, runs
from stoker.dataset.prepare.workers import Map
from stoker.storage import Location

__all__ = [
    "Duplicate",
    "ReadsSamples",
    "SummedReader",
    "find_duplicates",
    "hash_contents",
    "sum_contents",
]

_TASK_BYTES = 256 * 10**6
_TASK_SAMPLES = 20_000
_READERS = 4
_KEPT_FIRST = ("test", "validation", "train")
"""of images that are in several splits: evaluation splits stay as they were published"""


@dataclass(frozen=True)
class Duplicate:
    """A sample that was left out because ``same_as`` holds the same bytes; both are paths in the source."""

    path: str
    split: str
    label: int
    same_as: str
    same_as_split: str
    same_as_label: int


@dataclass(frozen=True)
class _Task:
    number: int
    source: Reader | RunReader
    entries: tuple[Entry, ...]
    has_runs: bool
    record: Location | None
    """where the checksums are stored, if anywhere"""

    @property
    def digest(self) -> str:
        return digest(self.entries)


@dataclass(frozen=True)
class _Hashes:
    """The checksums of one task's samples, xxh3_128 each, and their sum (see :func:`_sample_sum`)."""

    number: int
    sums: bytes
    total: int
    source_bytes: int
    was_there: bool


def _sample_sum(entry: Entry, data: bytes) -> int:
    """A 64-bit hash of a sample's name, label and bytes. Their sum over a source, modulo 2^64, identifies its contents.

    A sum does not depend on the order in which samples are read.
    """
    return xxhash.xxh3_64_intdigest(f"{entry.key}:{entry.label}:{xxhash.xxh3_128_hexdigest(data)}".encode())


def hash_contents(
    source: Source, map_: Map, build: Location | None, verb: str
) -> tuple[dict[str, NDArray[np.uint64]], int]:
    """Read every sample: its xxh3_128 as uint64 [n, 2] by split, and the sum of :func:`_sample_sum`."""
    places: list[tuple[str, int, int]] = []

    def tasks() -> Iterator[_Task]:
        for split, start, stop in _cut(source):
            number = len(places)
            places.append((split, start, stop))
            entries = source.splits[split]
            record = None if build is None else build / "hashes" / f"{number:06d}.json"
            chosen = tuple(entries[row] for row in range(start, stop))
            yield _Task(number, source.reader, chosen, source.has_runs, record)

    found = {split: np.zeros((len(entries), 2), np.uint64) for split, entries in source.splits.items()}
    progress = Progress(sum(map(len, source.splits.values())), verb)
    total = 0
    for hashes in map_(_hash, tasks()):
        split, start, stop = places[hashes.number]
        found[split][start:stop] = np.frombuffer(hashes.sums, np.uint64).reshape(-1, 2)
        total = (total + hashes.total) % 2**64
        progress.advance(stop - start, hashes.source_bytes, is_fresh=not hashes.was_there)
    progress.close()
    return found, total


def sum_contents(source: Source, map_: Map) -> int:
    """The sum of :func:`_sample_sum` over a source, modulo 2^64; reads every image, writes nothing."""
    return hash_contents(source, map_, None, "compared")[1]


def find_duplicates(
    source: Source, sums: dict[str, NDArray[np.uint64]]
) -> tuple[dict[str, NDArray[np.bool_]], list[Duplicate]]:
    """(a mask of the samples to keep, by split; the duplicates).

    The first of several samples with the same bytes is kept: first by split (test, validation, train), then in the
    order of the source.
    """
    names = [name for name in _KEPT_FIRST if name in source.splits]
    ends = np.cumsum([len(source.splits[name]) for name in names])
    all_sums = np.concatenate([sums[name] for name in names])
    order = np.lexsort((all_sums[:, 0], all_sums[:, 1]))  # stable, so equal ones keep their order
    is_same = (all_sums[order[1:]] == all_sums[order[:-1]]).all(axis=1)
    group_start = np.concatenate([[True], ~is_same])
    first = order[np.maximum.accumulate(np.where(group_start, np.arange(len(order)), 0))]
    stays = np.zeros(len(order), np.bool_)
    stays[order[group_start]] = True

    def entry(row: int) -> tuple[str, Entry]:
        at = int(np.searchsorted(ends, row, side="right"))
        name = names[at]
        return name, source.splits[name][row - (int(ends[at - 1]) if at else 0)]

    left_out = []
    for place in np.flatnonzero(~group_start).tolist():
        (split, gone), (kept_split, kept) = entry(int(order[place])), entry(int(first[place]))
        left_out.append(Duplicate(gone.shown_path, split, gone.label, kept.shown_path, kept_split, kept.label))
    left_out.sort(key=lambda duplicate: (duplicate.split, duplicate.path))
    masks = dict(zip(names, np.split(stays, ends[:-1]), strict=True))
    return {name: masks[name] for name in source.splits}, left_out


def _cut(source: Source) -> Iterator[tuple[str, int, int]]:
    """Runs of about 256 MB of each split: (split, first row, row after the last)."""
    for split, entries in source.splits.items():
        start = 0
        for stop in _stops(entries, has_runs=source.has_runs):
            yield split, start, stop
            start = stop


def _stops(entries: Entries, *, has_runs: bool) -> Iterator[int]:
    begun, size, start = entries.size.cumsum(), 0, 0
    for stop in range(1, len(entries) + 1):
        if stop < len(entries):
            size = int(begun[stop - 1]) - (int(begun[start - 1]) if start else 0)
            if size < _TASK_BYTES and stop - start < _TASK_SAMPLES:
                continue
            if has_runs and run_of(entries[stop - 1]) == run_of(entries[stop]):
                continue
        yield stop
        start = stop


def _hash(task: _Task) -> _Hashes:
    if task.record is not None:
        try:
            stored = json.loads(task.record.read())
            if stored["digest"] == task.digest:
                sums = bytes.fromhex(stored["sums"])
                return _Hashes(task.number, sums, stored["total"], stored["source_bytes"], was_there=True)
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            pass
    read, total, size = bytearray(), 0, 0
    for entry, data in _contents(task):
        read += xxhash.xxh3_128_digest(data)
        total = (total + _sample_sum(entry, data)) % 2**64
        size += len(data)
    if task.record is not None:
        record = {"digest": task.digest, "sums": read.hex(), "total": total, "source_bytes": size}
        task.record.write(json.dumps(record).encode())
    return _Hashes(task.number, bytes(read), total, size, was_there=False)


def _contents(task: _Task) -> Iterator[tuple[Entry, bytes]]:
    if task.has_runs:
        for run in runs(task.entries):
            yield from zip(run, cast("RunReader", task.source).read_run(run), strict=True)
        return
    with ThreadPoolExecutor(_READERS, thread_name_prefix="stoker-source") as pool:
        step = 8 * _READERS  # a bounded number of images at once
        for begin in range(0, len(task.entries), step):
            some = task.entries[begin : begin + step]
            yield from zip(some, pool.map(task.source.read, some), strict=True)


class ReadsSamples(Protocol):
    """The part of a reader that a shard's task needs."""

    def read(self, entry: Entry) -> bytes:
        """The image file's bytes."""


class SummedReader:
    """A reader that sums what it reads: ``total`` is the sum of :func:`_sample_sum`, modulo 2^64."""

    def __init__(self, reader: ReadsSamples) -> None:
        self._reader = reader
        self._lock = threading.Lock()
        self.total = 0

    def read(self, entry: Entry) -> bytes:
        data = self._reader.read(entry)
        with self._lock:
            self.total = (self.total + _sample_sum(entry, data)) % 2**64
        return data
