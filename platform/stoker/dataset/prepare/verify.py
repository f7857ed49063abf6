"""Verify a data set on the store against its manifest: the last step of a preparation, or at any later time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import xxhash
from numpy.typing import NDArray

from stoker.dataset.format.index import ShardIndex, payload_checksum, read_index
from stoker.dataset.format.manifest import Manifest, Shard, read_manifest
from stoker.dataset.format.pages import verify_pages
from stoker.dataset.prepare.shared import SharedImages
from stoker.errors import DatasetError
from stoker.storage import Location
from stoker.storage.retry import BadBody

__all__ = ["Verified", "verify"]

_READERS = 16
_INDEX_BYTES = 128 * 2**20
"""of the indexes that are read and compared at once, unless one alone is larger"""
_PIECE_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Verified:
    """A verified data set: its manifest, the samples of each class by split, and the images in more than one split."""

    manifest: Manifest
    class_samples: dict[str, tuple[int, ...]]
    shared_images: int


def verify(root: Location, *, is_full: bool = False) -> Verified:
    """Read the manifest and every index of the data set at ``root`` and compare the sizes of the shards.

    A few indexes are in memory at a time. The checksums of the samples, 8 bytes each, are in a temporary file where
    there are several splits, to find the images that are in more than one.

    With ``is_full`` the shards are read too, and each one's checksum and each sample's is computed.

    Raises:
        DatasetError: an object is missing, damaged or of another size; names it.
        StorageError: the store does not respond, or the folder of temporary files has no room.
    """
    manifest = read_manifest(root)
    counts: dict[str, NDArray[np.int64]] = {}
    readers = 2 if is_full else _READERS
    with (
        ThreadPoolExecutor(readers, thread_name_prefix="stoker-verify") as pool,
        SharedImages(list(manifest.splits)) as shared,
    ):
        for name, split in manifest.splits.items():
            counts[name] = np.zeros(len(manifest.classes), np.int64)
            for index in _in_turn(pool, readers, partial(_check_shard, root, is_full=is_full), split.shards):
                if len(index) and (index.label.min() < 0 or index.label.max() >= len(manifest.classes)):
                    raise _does_not_fit(root, name)
                counts[name] += np.bincount(index.label, minlength=len(manifest.classes))
                shared.add(name, index.checksum)
            if counts[name].sum() != split.samples:
                raise _does_not_fit(root, name)
        shared_images = shared.count()
    return Verified(
        manifest=manifest,
        class_samples={name: tuple(found.tolist()) for name, found in counts.items()},
        shared_images=shared_images,
    )


def _in_turn(
    pool: ThreadPoolExecutor, readers: int, check: Callable[[Shard], ShardIndex], shards: Iterable[Shard]
) -> Iterator[ShardIndex]:
    """The indexes in the order of ``shards``; what is read in advance is bounded, in shards and in bytes."""
    waiting: deque[tuple[Future[ShardIndex], int]] = deque()
    held = 0
    for shard in shards:
        size = shard.index_object_bytes
        while waiting and (len(waiting) >= readers or held + size > _INDEX_BYTES):
            done, freed = waiting.popleft()
            yield done.result()
            held -= freed
        waiting.append((pool.submit(check, shard), size))
        held += size
    while waiting:
        yield waiting.popleft()[0].result()


def _does_not_fit(root: Location, split: str) -> DatasetError:
    return DatasetError(f"{root}: the indexes of split {split!r} do not fit the manifest; prepare it again")


def _check_shard(root: Location, shard: Shard, *, is_full: bool) -> ShardIndex:
    index = read_index(root, shard)
    verify_pages(root, shard, index)
    where = shard.tar(root)
    try:
        size = where.size()
        if size != shard.bytes:
            raise DatasetError(
                f"{where}: has {size} bytes, the manifest says {shard.bytes}; prepare the data set again"
            )
        if is_full:
            _check_bytes(where, shard, index)
    except FileNotFoundError:
        raise DatasetError(f"{where}: missing, although the manifest names it; prepare the data set again") from None
    return index


def _check_bytes(where: Location, shard: Shard, index: ShardIndex) -> None:
    """Read the tar in pieces that hold whole samples: a foreign one may be larger than memory."""
    starts = index.offset.tolist()
    ends = (index.offset + index.length).tolist()
    hasher, at, first = xxhash.xxh3_128(), 0, 0
    while at < shard.bytes:
        stop = first + 1
        while stop < len(starts) and ends[stop] - at <= _PIECE_BYTES:
            stop += 1
        end = ends[stop - 1] if stop < len(starts) else shard.bytes
        rows = range(first, min(stop, len(starts)))

        def check(body: memoryview, at: int = at, rows: range = rows) -> None:
            for row in rows:
                if payload_checksum(body[starts[row] - at : ends[row] - at]) != index.checksum[row]:
                    raise BadBody(
                        f"sample {index.key(row)} at offset {starts[row]} does not have the checksum of the index"
                    )

        hasher.update(where.read_range(at, end, check))
        at, first = end, stop
    found = f"xxh3_128:{hasher.hexdigest()}"
    if found != shard.checksum:
        raise DatasetError(f"{where}: its checksum is {found}, not {shard.checksum}; prepare the data set again")
