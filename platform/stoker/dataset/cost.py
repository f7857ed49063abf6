"""Estimate the requests, bytes, time and cost of an epoch before it starts, by arithmetic alone.

Reads are those of ``stoker.dataset.order`` without the joining of neighbours: one for each block, and one more where
a slot's run or a shard ends inside a block. Each rank reads the index of each shard that it touches once if all fit
into its memory; if not, it reads the pages of a block's rows (``stoker.dataset.index_rows``), and whole indexes again
and again only where a data set has no pages. The figures are therefore upper bounds, close ones but for a local cache.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from stoker.dataset.format.manifest import PAGE_ROWS, Shard, Split
from stoker.dataset.index_rows import INDEX_BYTES, PAGE_OVERHEAD_BYTES, uses_pages

__all__ = ["EpochCost", "Prices", "Shape", "Store", "estimate_epoch"]


@dataclass(frozen=True)
class Store:
    """Bandwidth and latency of the store, as each rank sees them."""

    bandwidth_mb_s: float = 1000.0
    """to one rank, in 10^6 bytes a second"""
    latency_ms: float = 30.0
    """to the first byte of a request: an assumption, to be replaced by a measurement"""


@dataclass(frozen=True)
class Prices:
    """Prices in dollars; the defaults are list prices of Amazon S3 (standard, us-east-1) read from the same region."""

    million_requests: float = 0.40
    gb: float = 0.0
    """10^9 bytes that leave the store's region; from another region 0.02, to the internet 0.09"""


@dataclass(frozen=True)
class Shape:
    """The sizes of an epoch that determine its reads."""

    global_batch: int
    ranks: int = 1
    block_samples: int = 16
    read_threads: int = 8
    index_cache_bytes: int = INDEX_BYTES
    images_per_s: float | None = None
    """throughput of training on one rank, if known; None estimates the reading alone"""


@dataclass(frozen=True)
class EpochCost:
    """Estimated requests, bytes, time and cost of an epoch of ``samples`` samples, over all ranks."""

    samples: int
    steps: int
    data_requests: int
    data_bytes: int
    index_requests: int
    index_bytes: int
    read_s: float
    """seconds to read everything, at the store's bandwidth and latency"""
    seconds: float
    """of the epoch: the longer of reading and training"""
    cost: float
    """in dollars"""

    @property
    def requests(self) -> int:
        """All requests, including one for the manifest on each rank."""
        return self.data_requests + self.index_requests

    @property
    def bytes(self) -> int:
        return self.data_bytes + self.index_bytes

    @property
    def requests_per_s(self) -> float:
        """Mean request rate at the store."""
        return self.requests / self.seconds

    @property
    def bytes_per_s(self) -> float:
        """Mean throughput of the store."""
        return self.bytes / self.seconds


def estimate_epoch(split: Split, shape: Shape, store: Store | None = None, prices: Prices | None = None) -> EpochCost:
    """Estimate the cost of an epoch over ``split``.

    Raises:
        ValueError: a size is not positive, or the split is empty.
    """
    store, prices = store or Store(), prices or Prices()
    sizes = (split.samples, shape.global_batch, shape.ranks, shape.block_samples, shape.read_threads)
    if min(sizes) < 1 or store.bandwidth_mb_s <= 0:
        raise ValueError(f"samples, batch, ranks, block, threads and bandwidth must be above 0: {sizes}, {store}")
    data_requests = _block_reads(split, shape)
    data_bytes = sum(shard.bytes for shard in split.shards)
    index_requests, index_bytes = _index_reads(split, shape)
    requests, total = data_requests + index_requests, data_bytes + index_bytes
    bandwidth_s = total / (store.bandwidth_mb_s * 1e6 * shape.ranks)
    latency_s = requests * store.latency_ms / 1e3 / (shape.read_threads * shape.ranks)
    read_s = max(bandwidth_s, latency_s)
    train_s = split.samples / (shape.images_per_s * shape.ranks) if shape.images_per_s else 0.0
    return EpochCost(
        samples=split.samples,
        steps=math.ceil(split.samples / shape.global_batch),
        data_requests=data_requests,
        data_bytes=data_bytes,
        index_requests=index_requests,
        index_bytes=index_bytes,
        read_s=read_s,
        seconds=max(read_s, train_s),
        cost=requests / 1e6 * prices.million_requests + total / 1e9 * prices.gb,
    )


def _block_reads(split: Split, shape: Shape) -> int:
    block = shape.block_samples
    slots = min(shape.global_batch, split.samples)
    begin, straddled = 0, 0
    for shard in split.shards[:-1]:
        begin += shard.samples
        straddled += begin % block != 0
    return math.ceil(split.samples / block) + (slots - 1) + straddled


def _index_reads(split: Split, shape: Shape) -> tuple[int, int]:
    """(requests, bytes) for indexes: a rank's blocks fall on random shards, so it touches most or few of them."""
    paged: list[Shard] = []
    if uses_pages(split.shards, shape.index_cache_bytes):
        paged = [shard for shard in split.shards if shard.page_bytes]
    whole = [shard for shard in split.shards if not (paged and shard.page_bytes)]
    requests, bytes_ = shape.ranks, 0  # 1 for the manifest
    for shards, reads in ((whole, _whole_reads), (paged, _page_reads)):
        if shards:
            fraction = sum(shard.samples for shard in shards) / split.samples
            blocks = math.ceil(split.samples * fraction / shape.block_samples / shape.ranks)
            more, of_bytes = reads(shards, blocks, shape)
            requests += shape.ranks * math.ceil(more)
            bytes_ += round(shape.ranks * of_bytes)
    return requests, bytes_


def _whole_reads(shards: Sequence[Shard], blocks: int, shape: Shape) -> tuple[float, float]:
    """(requests, bytes) of a rank for whole indexes of ``shards``, on which ``blocks`` of its blocks fall."""
    mean_bytes = sum(shard.index_bytes for shard in shards) / len(shards)
    reads = math.ceil(_misses(blocks, len(shards), mean_bytes, shape))
    return reads, reads * mean_bytes


def _page_reads(shards: Sequence[Shard], blocks: int, shape: Shape) -> tuple[float, float]:
    """(requests, bytes) of a rank for pages: neighbouring ones are one request."""
    pages = sum(-(-shard.samples // PAGE_ROWS) for shard in shards)
    mean_bytes = sum(-(-shard.samples // PAGE_ROWS) * shard.page_bytes for shard in shards) / pages
    a_block = 1 + (shape.block_samples - 1) / PAGE_ROWS  # where a block begins anywhere in a page
    misses = _misses(math.ceil(blocks * a_block), pages, mean_bytes + PAGE_OVERHEAD_BYTES, shape)
    return min(blocks, misses), misses * mean_bytes


def _misses(looks: int, of: int, mean_bytes: float, shape: Shape) -> float:
    """Reads for ``looks`` at random ones ``of`` things that are kept while they fit into the memory for indexes."""
    touched = of * -math.expm1(looks * math.log1p(-1 / of)) if of > 1 else 1.0
    kept = min(1.0, shape.index_cache_bytes / (touched * mean_bytes)) if mean_bytes else 1.0
    return touched + (looks - touched) * (1 - kept) if looks > touched else touched
