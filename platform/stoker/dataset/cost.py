"""Estimate the requests, bytes, time and cost of an epoch before it starts, by arithmetic alone.

Reads are those of ``stoker.dataset.order`` without the joining of neighbours: one for each block, and one more where
a slot's run or a shard ends inside a block. Each rank reads the index of each shard that it touches, again where its
indexes outgrow their cache. The figures are therefore upper bounds, close ones but for a local cache.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from stoker.dataset.format.manifest import Split

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
    index_cache_bytes: int = 256 * 2**20
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
    shards = len(split.shards)
    mean_bytes = sum(shard.index_bytes for shard in split.shards) / shards
    blocks = math.ceil(split.samples / shape.block_samples / shape.ranks)
    touched = shards * -math.expm1(blocks * math.log1p(-1 / shards)) if shards > 1 else 1.0
    cached = min(1.0, shape.index_cache_bytes / (touched * mean_bytes)) if mean_bytes else 1.0
    a_rank = touched + (blocks - touched) * (1 - cached) if blocks > touched else touched
    requests = shape.ranks * (1 + math.ceil(a_rank))  # 1 for the manifest
    return requests, round(shape.ranks * math.ceil(a_rank) * mean_bytes)
