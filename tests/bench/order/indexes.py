"""Count the index bytes of one rank by the true reader's policy, over the true order; only the store is simulated.

The reader's own ``IndexRows`` decides what is read and what is kept in memory. Its source is one real index, packed as
prepare packs it, that stands for the index of every shard, and counts what it is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, zip_longest

import numpy as np

from stoker.dataset.format.index import IndexRow, ShardIndex
from stoker.dataset.format.manifest import Shard
from stoker.dataset.format.pages import pack_index
from stoker.dataset.index_rows import INDEX_BYTES, IndexRows
from stoker.dataset.order import EpochOrder, key_of, micro_batches_of
from stoker.recipe import Data

__all__ = ["CASES", "IndexCase", "count_index_reads"]


@dataclass(frozen=True)
class IndexCase:
    """A data set of ``samples`` of ``sample_bytes`` in ``shards``, and the rank of ``ranks`` that reads it."""

    samples: int
    shards: int
    sample_bytes: int
    ranks: int
    micro_batch: int = 64
    reads: int = 20_000
    """at which the rank stops, if its epoch has more"""
    is_paged: bool = True
    """whether the indexes have pages; those of before 1.2 have none"""

    @property
    def name(self) -> str:
        return f"{self.samples:.0e}_in_{self.shards:.0e}_of_{self.sample_bytes // 1000}kb_{self.ranks}_ranks".replace(
            "+0", ""
        )


CASES = (
    IndexCase(10**9, 10**5, 100_000, 4096),
    IndexCase(10**9, 10**6, 100_000, 4096),
    IndexCase(10**9, 10**5, 25_000, 4096),
    IndexCase(10**9, 10**6, 25_000, 4096),
    IndexCase(10**9, 10**6, 100_000, 8),
    IndexCase(10**8, 10**4, 25_000, 8),
)


def count_index_reads(case: IndexCase, *, bound_bytes: int = INDEX_BYTES) -> dict[str, float]:
    """The reads of samples and of indexes of the middle rank, in its order, from the start of an epoch on.

    ``percent``: bytes of indexes per 100 bytes of samples. ``held_mb``: most of indexes in memory.
    """
    source = _Source(case)
    rows = IndexRows(source.shards, source, bound_bytes)
    data = Data(url="")
    key = key_of("sha256:simulated", "train", 0, 0)
    batch = case.ranks * case.micro_batch
    order = EpochOrder(case.samples, batch, key, data.block_samples, data.window_blocks)
    mine = micro_batches_of(case.ranks // 2, case.ranks, case.ranks)
    slots = range(mine.start * case.micro_batch, mine.stop * case.micro_batch)
    begins = np.arange(case.shards + 1, dtype=np.int64) * case.samples // case.shards
    reads, samples, most_held = 0, 0, 0
    for window in chain.from_iterable(zip_longest(*(order.windows(slot) for slot in slots))):
        for first, stop in window.pieces if window else ():
            shards = np.searchsorted(begins, (first, stop - 1), side="right") - 1
            for shard in range(shards[0], shards[1] + 1):
                begin = int(begins[shard])
                rows.rows(shard, max(first, begin) - begin, min(stop, int(begins[shard + 1])) - begin)
                reads, most_held = reads + 1, max(most_held, rows.held_bytes)
            samples += stop - first
        if reads >= case.reads:
            break
    data_bytes = samples * case.sample_bytes
    return {
        "reads": reads,
        "index_requests": source.requests,
        "index_mb": source.bytes / 1e6,
        "percent": 100 * source.bytes / data_bytes,
        "held_mb": most_held / 1e6,
    }


class _Source:
    """One index for all shards, and the requests and bytes that reading it takes."""

    def __init__(self, case: IndexCase) -> None:
        samples = -(-case.samples // case.shards)
        step = case.sample_bytes + 1024
        self._index = ShardIndex.of(
            IndexRow(step * n, case.sample_bytes, n % 1000, 500, 400, n, f"n01440764_{n:05d}") for n in range(samples)
        )
        self._packed = pack_index(self._index)
        page_bytes = self._packed.page_bytes if case.is_paged else 0
        sizes = self._packed.index_bytes, self._packed.index_checksum, page_bytes
        self.shards = [Shard("", samples * step, samples, "", "", *sizes)] * case.shards
        self.requests, self.bytes = 0, 0

    def whole(self, number: int) -> ShardIndex:
        self.requests, self.bytes = self.requests + 1, self.bytes + self._packed.index_bytes
        return self._index

    def pages(self, number: int, first: int, stop: int) -> list[bytes]:
        begin, size = self._packed.index_bytes, self._packed.page_bytes
        self.requests, self.bytes = self.requests + 1, self.bytes + (stop - first) * size
        return [self._packed.data[begin + page * size : begin + (page + 1) * size] for page in range(first, stop)]
