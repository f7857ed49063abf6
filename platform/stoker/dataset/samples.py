"""Read samples by number: locate their shards, read neighbours in one request, and verify checksums."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stoker.dataset.format.index import ShardIndex, payload_checksum
from stoker.dataset.format.jpeg import Marks
from stoker.dataset.format.manifest import Split, read_manifest
from stoker.dataset.index_rows import INDEX_BYTES, IndexRows, StoredIndexes
from stoker.errors import DatasetError
from stoker.storage import BlockCache, Location, Reads
from stoker.storage.retry import BadBody

__all__ = ["INDEX_BYTES", "Sample", "SampleReader", "ShardReader"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample as it is stored.

    ``data`` holds the encoded bytes; ``shard`` (a URL) and ``offset`` are where they were read. ``orientation`` is
    EXIF's, 1 to 8; ``marks`` are where a JPEG can be cut (``stoker.dataset.format.jpeg``).
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

    Indexes are read when their shard is first needed and kept up to a bound in bytes, or read by page where all of them
    are larger than that (``stoker.dataset.index_rows``). With a ``cache``, whole blocks of ``block`` samples are read
    and stored there, for later reads of other parts in this epoch or the next.
    """

    def __init__(
        self,
        root: Location,
        split: Split,
        *,
        reads: Reads | None = None,
        cache: BlockCache | None = None,
        block: int = 1,
    ) -> None:
        self._root = root
        self._shards = split.shards
        self._first = np.cumsum([0, *(shard.samples for shard in split.shards)])
        self._reads = reads or Reads()
        self._cache, self._block = cache, block
        self._indexes = IndexRows(split.shards, StoredIndexes(root, split.shards, self._reads, cache))

    def expected_bytes(self, first: int, stop: int) -> int:
        """Approximate size in bytes of the samples ``first`` to ``stop``, from the manifest alone."""
        shard = self._shards[self._shard_of(first)]
        return int((stop - first) * shard.bytes / max(1, shard.samples))

    def read(self, first: int, stop: int, *, is_alone: bool = False) -> list[Sample]:
        """The samples ``first`` to ``stop``, in order: one range read for each shard that they touch.

        ``is_alone`` reads these samples only, and caches nothing, where their block is not in the cache.

        Raises:
            StorageError: no read within the timeout returned the bytes that the index describes; names shard and keys.
            DatasetError: an index is missing or damaged.
        """
        found: list[Sample] = []
        while first < stop:
            number = self._shard_of(first)
            begin, end = int(self._first[number]), min(stop, int(self._first[number + 1]))
            if self._cache:
                end = min(end, (first // self._block + 1) * self._block)
            found.extend(self._rows(number, first - begin, end - begin, is_alone=is_alone))
            first = end
        return found

    def keys(self, first: int, stop: int) -> list[str]:
        """The keys of the samples ``first`` to ``stop``, in order; reads rows of indexes and no sample.

        Raises:
            StorageError, DatasetError: an index cannot be read, is missing or damaged.
        """
        found: list[str] = []
        while first < stop:
            number = self._shard_of(first)
            begin, end = int(self._first[number]), min(stop, int(self._first[number + 1]))
            index, base = self._indexes.rows(number, first - begin, end - begin)
            found.extend(index.key(row - base) for row in range(first - begin, end - begin))
            first = end
        return found

    def labels(self, number: int) -> NDArray[np.int64]:
        """The labels of the samples of shard ``number``, in order: int64 [n]; reads its index and no sample.

        Raises:
            StorageError, DatasetError: the index cannot be read, is missing or damaged.
        """
        return self._indexes.whole(number).label

    def _shard_of(self, number: int) -> int:
        return int(np.searchsorted(self._first, number, side="right")) - 1

    def _rows(self, number: int, first: int, stop: int, *, is_alone: bool) -> list[Sample]:
        begin = int(self._first[number])
        where = self._shards[number].tar(self._root).url
        try:
            index, base = self._indexes.rows(number, *self._block_rows(number, first, stop))
            start, body = self._bytes(number, index, base, first, stop, is_alone=is_alone)
        except FileNotFoundError:
            raise DatasetError(
                f"{where}: missing, although the manifest names it; prepare the data set again"
            ) from None
        rows = slice(first - base, stop - base)
        offsets = index.offset[rows].tolist()
        lengths = index.length[rows].tolist()
        labels = index.label[rows].tolist()
        return [
            Sample(
                begin + base + row,
                index.key(row),
                label,
                body[offset - start : offset - start + length],
                where,
                offset,
                index.orientation(row),
                index.marks(row),
            )
            for row, offset, length, label in zip(range(rows.start, rows.stop), offsets, lengths, labels, strict=True)
        ]

    def _block_rows(self, number: int, first: int, stop: int) -> tuple[int, int]:
        """The rows that a read of ``first`` to ``stop`` needs: with a cache, those of their blocks."""
        if not self._cache:
            return first, stop
        begin, samples = int(self._first[number]), self._shards[number].samples
        block_first = max(0, (begin + first) // self._block * self._block - begin)
        return block_first, min(samples, -(-(begin + stop) // self._block) * self._block - begin)

    def _bytes(
        self, number: int, index: ShardIndex, base: int, first: int, stop: int, *, is_alone: bool
    ) -> tuple[int, memoryview]:
        """(offset in the tar, bytes from there on that hold the rows); ``index`` begins at row ``base``."""
        shard = self._shards[number]
        if self._cache:
            block_first, block_stop = self._block_rows(number, first, stop)
            rows = _Rows(index, block_first - base, block_stop - base)
            key = f"{shard.checksum}/{rows.start}-{rows.end}"
            body = self._cache.get(key, rows.check)
            if body is None and not is_alone:
                body = shard.tar(self._root).read_range(rows.start, rows.end, rows.check, reads=self._reads)
                self._cache.put(key, body)
            if body is not None:
                return rows.start, body
        rows = _Rows(index, first - base, stop - base)
        return rows.start, shard.tar(self._root).read_range(rows.start, rows.end, rows.check, reads=self._reads)


class _Rows:
    """The bytes of rows ``first`` to ``stop`` of an index: ``start`` to ``end`` of the tar, and their checksums."""

    def __init__(self, index: ShardIndex, first: int, stop: int) -> None:
        self._index, self._first, self._stop = index, first, stop
        self.start = int(index.offset[first])
        self.end = int((index.offset[first:stop] + index.length[first:stop]).max())

    def check(self, body: memoryview) -> None:
        """Raise :class:`BadBody` unless ``body`` holds each sample with the checksum of the index."""
        index, rows = self._index, range(self._first, self._stop)
        begins = (index.offset[rows.start : rows.stop] - self.start).tolist()
        lengths = index.length[rows.start : rows.stop].tolist()
        sums = index.checksum[rows.start : rows.stop].tolist()
        for row, begin, length, expected in zip(rows, begins, lengths, sums, strict=True):
            if payload_checksum(body[begin : begin + length]) != expected:
                raise BadBody(f"wrong checksum of sample {index.key(row)} at offset {self.start + begin}")


class SampleReader:
    """Reads samples of a data set by number: for inspection, tests and comparisons.

    Raises:
        DatasetError: there is no data set at ``root``, or it does not have the split.
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
        self._check(numbers)
        found: list[Sample] = []
        for members in _runs(numbers):
            found.extend(self._reader.read(members[0], members[-1] + 1))
        return found

    def keys(self, numbers: Sequence[int]) -> list[str]:
        """The keys of the samples ``numbers``, in that order, from the indexes alone.

        Raises:
            IndexError: a number is not in ``range(len(self))``.
        """
        self._check(numbers)
        return [key for members in _runs(numbers) for key in self._reader.keys(members[0], members[-1] + 1)]

    def _check(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            if not 0 <= number < self._samples:
                raise IndexError(f"sample {number} not found: the split holds samples 0 to {self._samples - 1}")


def _runs(numbers: Sequence[int]) -> Iterator[list[int]]:
    """Neighbours in a row, together."""
    for _, run in itertools.groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        yield [number for _, number in run]
