"""The only module of the benchmark that imports stoker's loader, cache and decode, whose names may change."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import s3fs  # noqa: F401 - imported before the clock starts, lazy imports included

from bench.data.place import BATCH, SIDE, WORKERS, Place
from stoker.dataset import Loader
from stoker.dataset.decode import TrainingImages
from stoker.dataset.format.index import read_index
from stoker.dataset.format.manifest import Split, read_manifest
from stoker.dataset.order import EpochOrder, key_of, uniform
from stoker.dataset.samples import SampleReader, ShardReader
from stoker.dataset.stream import BlockStream
from stoker.recipe import Augment, Data
from stoker.storage import InFlight, Reads, locate

with contextlib.suppress(ModuleNotFoundError):
    import obstore  # noqa: F401

__all__ = ["decode_alone", "loader", "ranges", "read_raw"]

_CACHE_MB = 8192


def loader(
    place: Place, source: str, *, kind: str = "stoker", global_batch: int = BATCH, epochs: int = 1, **changed: Any
) -> Loader:
    """Our loader at its defaults but for two decode threads, on ``source``: s3, local, or cache (s3 with a cache).

    It reads ``epochs`` epochs: of a training that goes on, what is read ahead at their end would be of use.
    """
    if source == "cache":
        changed = {"cache_dir": str(Path(place.scratch) / "cache"), "cache_mb": _CACHE_MB, **changed}
    url = str(place.local(kind)) if source == "local" else place.url(kind)
    data = Data(**{"url": url, "decode_threads": WORKERS, "last_batch": "pad", **changed})
    return Loader(url, "train", global_batch=global_batch, micro_batch=BATCH, data=data, epochs=epochs)


def decode_alone(place: Place, most: int) -> Iterator[int]:
    """Decode samples that are in memory already, a micro-batch a time as the loader does, into the same batch: how
    many were decoded each time."""
    reader = SampleReader(locate(str(place.local("stoker"))), "train")
    samples = reader.read(range(min(most, len(reader))))
    decoder = TrainingImages(SIDE, Augment())
    draws = uniform(key_of("bench"), [sample.number for sample in samples], decoder.draws)
    batch = decoder.empty(BATCH)
    yield 0
    for first in range(0, len(samples), BATCH):
        part = slice(first, first + BATCH)
        failed = decoder.decode(samples[part], draws[part], batch)
        if failed:
            raise RuntimeError(f"{len(failed)} samples could not be decoded: {next(iter(failed.values()))}")
        yield len(samples[part])


def read_raw(place: Place) -> Iterator[int]:
    """For each step of an epoch the bytes that came from the store so far: read and checked, not decoded."""
    split, order, data = _epoch(place)
    threads = data.read_threads
    reads = Reads(in_flight=InFlight(2, threads))
    reader = ShardReader(locate(place.url("stoker")), split, reads=reads)
    bound = data.memory_mb * 2**20
    with BlockStream(reader, lambda _: order, range(BATCH), read_threads=threads, memory_bytes=bound) as stream:
        for _ in stream:
            yield reads.counters.bytes


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
