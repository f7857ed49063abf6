"""The one place where the benchmark meets stoker's loader, cache and decode: names that may change stand here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.data.place import BATCH, SIDE, WORKERS, Absent, Place
from stoker.dataset import Loader
from stoker.dataset.decode import training_image
from stoker.dataset.index import read_index
from stoker.dataset.manifest import Split, read_manifest
from stoker.dataset.order import EpochOrder, key_of, uniform
from stoker.dataset.samples import SampleReader, ShardReader
from stoker.dataset.stream import BlockStream
from stoker.recipe import Augment, Data
from stoker.storage import locate

__all__ = ["decoders", "loader", "memory_bound_bytes", "ranges", "read_raw"]

_DRAWS = 23
_CACHE_MB = 8192
_STEPS_AHEAD = 5
_INDEX_CACHE_BYTES = 256 * 2**20


def loader(place: Place, source: str, *, kind: str = "stoker", global_batch: int = BATCH, **changed: Any) -> Loader:
    """Our loader at its defaults, except for two decode threads, on ``source``: s3, local, or cache (s3 with a cache).

    Raises:
        Absent: this stoker has no cache of a node.
    """
    if source == "cache":
        if "cache_dir" not in Data.model_fields:
            raise Absent("this stoker's recipe has no data.cache_dir")
        changed = {"cache_dir": str(Path(place.scratch) / "cache"), "cache_mb": _CACHE_MB, **changed}
    url = str(place.local(kind)) if source == "local" else place.url(kind)
    data = Data(**{"url": url, "decode_threads": WORKERS, "last_batch": "pad", **changed})
    return Loader(url, "train", global_batch=global_batch, micro_batch=BATCH, data=data)


def memory_bound_bytes(made: Loader, global_batch: int) -> int:
    """What the loader promises to stay below, or what its parts add up to where it does not say."""
    told = getattr(made, "memory_bound_bytes", None)
    if told is not None:
        return int(told)
    batches = _STEPS_AHEAD * global_batch * 3 * SIDE * SIDE
    return Data(url="").memory_mb * 2**20 + batches + _INDEX_CACHE_BYTES


def decoders(place: Place, count: int) -> list[Callable[[torch.Tensor], None]]:
    """For each of ``count`` samples, read already, what decodes it into a place of a batch: the loader's own way."""
    reader = SampleReader(locate(str(place.local("stoker"))), "train")
    samples = reader.read(range(min(count, len(reader))))
    draws = uniform(key_of("bench"), [sample.number for sample in samples], _DRAWS)
    augment = Augment()

    def of(n: int) -> Callable[[torch.Tensor], None]:
        def decode(into: torch.Tensor) -> None:
            into.copy_(training_image(samples[n].data, draws[n], image_size=SIDE, augment=augment))

        return decode

    return [of(n) for n in range(len(samples))]


def read_raw(place: Place) -> Iterator[int]:
    """For each step of an epoch the bytes that came from the store so far: read and checked, not decoded."""
    split, order, data = _epoch(place)
    reader = ShardReader(locate(place.url("stoker")), split)
    bound = data.memory_mb * 2**20
    with BlockStream(reader, order, range(BATCH), read_threads=data.read_threads, memory_bytes=bound) as stream:
        for _ in stream:
            yield reader.bytes_read


def ranges(place: Place) -> list[tuple[str, int, int]]:
    """(shard's path, start, stop) of what an epoch reads, in the order of need: what the raw clients are given."""
    root = locate(place.url("stoker"))
    split, order, _ = _epoch(place)
    indexes = [read_index(root, shard) for shard in split.shards]
    begins = np.cumsum([0, *(len(index) for index in indexes)])
    windows = [window for slot in range(BATCH) for window in order.windows(slot)]
    found = []
    for window in sorted(windows, key=lambda window: window.first_step):
        for first, stop in window.pieces:
            for shard, index, begin in zip(split.shards, indexes, begins, strict=False):
                a, b = max(first - begin, 0), min(stop - begin, len(index))
                if a < b:
                    end = int(index.offset[b - 1] + index.length[b - 1])
                    found.append((shard.path, int(index.offset[a]), end))
    return found


def _epoch(place: Place) -> tuple[Split, EpochOrder, Data]:
    root = locate(place.url("stoker"))
    manifest = read_manifest(root)
    split, data = manifest.split("train"), Data(url=root.url)
    key = key_of(manifest.fingerprint)
    return split, EpochOrder(split.samples, BATCH, key, data.block_samples, data.window_blocks, "pad"), data
