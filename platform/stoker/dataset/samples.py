"""From sample numbers to checked bytes: which shard, where in it, and one range read for neighbours."""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stoker.dataset.index import ShardIndex, payload_checksum, read_index
from stoker.dataset.jpeg import Marks
from stoker.dataset.manifest import Split, read_manifest
from stoker.errors import DatasetError
from stoker.storage import Location
from stoker.storage.retry import BadBody

__all__ = ["Sample", "SampleReader", "ShardReader"]

_INDEX_CACHE_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Sample:
    """One sample as it is stored.

    ``data`` holds the encoded bytes; ``shard`` and ``offset`` say where they came from. ``orientation`` is EXIF's, 1 to
    8; ``marks`` say where a JPEG can be cut (``stoker.dataset.jpeg``).
    """

    number: int
    key: str
    label: int
    data: memoryview
    shard: str
    offset: int
    orientation: int = 1
    marks: Marks | None = None


class ShardReader:
    """Reads samples of one split by number. Safe to use from many threads.

    Indexes are read when their shard is first needed and kept up to a bound in bytes, the least recently used leaving
    first.
    """

    def __init__(self, root: Location, split: Split) -> None:
        self._root = root
        self._shards = split.shards
        self._first = np.cumsum([0, *(shard.samples for shard in split.shards)])
        self._indexes: OrderedDict[int, ShardIndex] = OrderedDict()
        self._index_bytes = 0
        self._lock = threading.Lock()
        self._loading: dict[int, threading.Lock] = {}
        self.bytes_read = 0

    def expected_bytes(self, first: int, stop: int) -> int:
        """About how many bytes the samples ``first`` to ``stop`` take, from the manifest alone."""
        number = int(np.searchsorted(self._first, first, side="right")) - 1
        shard = self._shards[number]
        return int((stop - first) * shard.bytes / max(1, shard.samples))

    def read(self, first: int, stop: int) -> list[Sample]:
        """The samples ``first`` to ``stop``, in order: one range read for each shard that they touch.

        Raises:
            StorageError: no read within the patience gave the bytes that the index promises; names shard and keys.
            DatasetError: an index is missing or damaged.
        """
        found: list[Sample] = []
        while first < stop:
            number = int(np.searchsorted(self._first, first, side="right")) - 1
            end = min(stop, int(self._first[number + 1]))
            begin = int(self._first[number])
            found.extend(self._read_rows(number, first - begin, end - begin, begin))
            first = end
        return found

    def _read_rows(self, number: int, first: int, stop: int, begin: int) -> list[Sample]:
        shard, index = self._shards[number], self._index(number)
        rows = range(first, stop)
        start = int(index.offset[first])
        ends = (index.offset[first:stop] + index.length[first:stop]).tolist()
        starts = index.offset[first:stop].tolist()
        sums = index.checksum[first:stop].tolist()

        def check(body: bytes) -> None:
            view = memoryview(body)
            for row, a, b, expected in zip(rows, starts, ends, sums, strict=True):
                if payload_checksum(view[a - start : b - start]) != expected:
                    raise BadBody(f"wrong checksum of sample {index.keys[row]} at offset {a}")

        where = shard.tar(self._root)
        try:
            body = memoryview(where.read_range(start, max(ends), check))
        except FileNotFoundError:
            raise DatasetError(f"{where}: missing, although the manifest names it; prepare it again") from None
        self.bytes_read += len(body)
        return [
            Sample(
                begin + row,
                index.keys[row],
                int(index.label[row]),
                body[a - start : b - start],
                shard.path,
                a,
                index.orientation(row),
                index.marks(row),
            )
            for row, a, b in zip(rows, starts, ends, strict=True)
        ]

    def _index(self, number: int) -> ShardIndex:
        with self._lock:
            if number in self._indexes:
                self._indexes.move_to_end(number)
                return self._indexes[number]
            loading = self._loading.setdefault(number, threading.Lock())
        with loading:
            with self._lock:
                if number in self._indexes:
                    return self._indexes[number]
            shard = self._shards[number]
            index = read_index(self._root, shard)
            with self._lock:
                self._indexes[number] = index
                self._index_bytes += shard.index_bytes
                while self._index_bytes > _INDEX_CACHE_BYTES and len(self._indexes) > 1:
                    dropped, _ = self._indexes.popitem(last=False)
                    self._index_bytes -= self._shards[dropped].index_bytes
                self._loading.pop(number, None)
            return index


class SampleReader:
    """Samples of a data set by number, one at a time or several: for a look, a test, a comparison.

    Raises:
        DatasetError: there is no data set at ``root``, or no such split in it.
    """

    def __init__(self, root: Location, split: str) -> None:
        found = read_manifest(root).split(split)
        self._reader = ShardReader(root, found)
        self._samples = found.samples

    def __len__(self) -> int:
        return self._samples

    def read(self, numbers: Sequence[int]) -> list[Sample]:
        """The samples ``numbers``, in that order; neighbours in a row are read together.

        Raises:
            IndexError: a number is not in ``range(len(self))``.
        """
        for number in numbers:
            if not 0 <= number < self._samples:
                raise IndexError(f"the split holds samples 0 to {self._samples - 1}, there is no {number}")
        found: list[Sample] = []
        for _, run in itertools.groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
            members = [number for _, number in run]
            found.extend(self._reader.read(members[0], members[-1] + 1))
        return found
