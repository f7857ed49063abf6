"""Give the rows of a split's indexes within a bound of memory: whole indexes while all fit, pages where they do not.

A block falls on a random shard. Where the indexes of all shards fit into the bound, each is read once and kept, which
is least in requests. Where they do not, each block would read a whole index for its few rows, so it reads one or two
pages instead (``stoker.dataset.format.pages``). Indexes without pages, from before version 1.2, are read whole.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from stoker.dataset.format.index import ShardIndex, read_index
from stoker.dataset.format.manifest import PAGE_ROWS, Shard
from stoker.dataset.format.pages import index_of_pages, read_pages
from stoker.storage import BlockCache, Location, Reads

__all__ = ["INDEX_BYTES", "PAGE_OVERHEAD_BYTES", "IndexRows", "StoredIndexes", "uses_pages"]

INDEX_BYTES = 256 * 2**20
"""most bytes of indexes that a reader caches (or one index, if that is larger)"""
PAGE_OVERHEAD_BYTES = 512
"""counted for each page in memory, beside its bytes"""
_WHOLE = -1


def uses_pages(shards: Sequence[Shard], bound_bytes: int) -> bool:
    """Whether the indexes of ``shards`` are read by page, where they have pages, within ``bound_bytes`` of memory."""
    return sum(shard.index_bytes for shard in shards) > bound_bytes


class ReadsIndexes(Protocol):
    """Where indexes are read from."""

    def whole(self, number: int) -> ShardIndex:
        """The whole index of shard ``number``."""

    def pages(self, number: int, first: int, stop: int) -> list[bytes]:
        """The checked pages ``first`` to ``stop`` of the index of shard ``number``."""


@dataclass(frozen=True)
class StoredIndexes:
    """The indexes of a data set on the store, and in the node's cache."""

    root: Location
    shards: Sequence[Shard]
    reads: Reads
    cache: BlockCache | None = None

    def whole(self, number: int) -> ShardIndex:
        return read_index(self.root, self.shards[number], reads=self.reads, cache=self.cache)

    def pages(self, number: int, first: int, stop: int) -> list[bytes]:
        return read_pages(self.root, self.shards[number], first, stop, reads=self.reads, cache=self.cache)


class IndexRows:
    """Rows of the indexes of ``shards``. Safe to use from many threads.

    At most ``bound_bytes`` of indexes and pages are kept, or one index, if that is larger; the least recently used are
    dropped first.
    """

    def __init__(self, shards: Sequence[Shard], source: ReadsIndexes, bound_bytes: int = INDEX_BYTES) -> None:
        self._shards, self._source, self._bound_bytes = shards, source, bound_bytes
        self._uses_pages = uses_pages(shards, bound_bytes)
        self._held = OrderedDict[tuple[int, int], tuple[Any, int]]()  # (shard, page or _WHOLE): what, and its bytes
        self._held_bytes = 0
        self._lock = threading.Lock()
        self._loading: dict[int, threading.Lock] = {}

    @property
    def held_bytes(self) -> int:
        """Bytes of the indexes and pages in memory."""
        return self._held_bytes

    def rows(self, number: int, first: int, stop: int) -> tuple[ShardIndex, int]:
        """Rows of shard ``number`` that include ``first`` to ``stop``, and the number of the first of them.

        Raises:
            DatasetError: the index is missing or damaged.
            StorageError: it cannot be read.
        """
        shard = self._shards[number]
        if not self._uses_pages or not shard.page_bytes:
            return self._whole(number), 0
        pages = range(first // PAGE_ROWS, (stop - 1) // PAGE_ROWS + 1)
        return index_of_pages(shard, pages.start, self._paged(number, pages)), pages.start * PAGE_ROWS

    def whole(self, number: int) -> ShardIndex:
        """The whole index of shard ``number``; kept only where the indexes of all shards are.

        Raises:
            DatasetError, StorageError: see :meth:`rows`.
        """
        return self._source.whole(number) if self._uses_pages else self._whole(number)

    def _paged(self, number: int, pages: range) -> list[bytes]:
        with self._lock:
            found = {page: held for page in pages if (held := self._get(number, page)) is not None}
        missing = [page for page in pages if page not in found]
        if missing:
            begin, end = missing[0], missing[-1] + 1
            read = dict(zip(range(begin, end), self._source.pages(number, begin, end), strict=True))
            with self._lock:
                for page, body in read.items():
                    self._put(number, page, body, self._shards[number].page_bytes + PAGE_OVERHEAD_BYTES)
            found |= read
        return [found[page] for page in pages]

    def _whole(self, number: int) -> ShardIndex:
        with self._lock:
            index: ShardIndex | None = self._get(number, _WHOLE)
            if index is not None:
                return index
            loading = self._loading.setdefault(number, threading.Lock())
        with loading:
            with self._lock:
                index = self._get(number, _WHOLE)
            if index is None:
                index = self._source.whole(number)
                with self._lock:
                    self._put(number, _WHOLE, index, self._shards[number].index_bytes)
                    self._loading.pop(number, None)
            return index

    def _get(self, number: int, page: int) -> Any:
        held = self._held.get((number, page))
        if held is None:
            return None
        self._held.move_to_end((number, page))
        return held[0]

    def _put(self, number: int, page: int, what: Any, bytes_: int) -> None:
        if (number, page) in self._held:  # another thread was faster
            return
        self._held[number, page] = what, bytes_
        self._held_bytes += bytes_
        while self._held_bytes > self._bound_bytes and len(self._held) > 1:
            _, (_, dropped_bytes) = self._held.popitem(last=False)
            self._held_bytes -= dropped_bytes
