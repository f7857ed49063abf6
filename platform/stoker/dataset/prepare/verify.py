"""Verify a data set on the store against its manifest: the last step of a preparation, or at any later time."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

from stoker.dataset.format.index import ShardIndex, payload_checksum, read_index
from stoker.dataset.format.manifest import Manifest, Shard, read_manifest
from stoker.dataset.format.pages import verify_pages
from stoker.errors import DatasetError
from stoker.storage import Location
from stoker.storage.retry import BadBody

__all__ = ["Verified", "verify"]

_READERS = 16
_PIECE_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Verified:
    """A verified data set: its manifest, the samples of each class by split, and the images in more than one split."""

    manifest: Manifest
    class_samples: dict[str, tuple[int, ...]]
    shared_images: int


def verify(root: Location, *, is_full: bool = False) -> Verified:
    """Read the manifest and every index of the data set at ``root`` and compare the sizes of the shards.

    With ``is_full`` the shards are read too, and each one's checksum and each sample's is computed.

    Raises:
        DatasetError: an object is missing, damaged or of another size; names it.
        StorageError: the store does not respond.
    """
    manifest = read_manifest(root)
    counts: dict[str, NDArray[np.int64]] = {}
    sums: dict[str, NDArray[np.uint64]] = {}
    with ThreadPoolExecutor(2 if is_full else _READERS, thread_name_prefix="stoker-verify") as pool:
        for name, split in manifest.splits.items():
            indexes = list(pool.map(lambda shard: _check_shard(root, shard, is_full=is_full), split.shards))
            labels = np.concatenate([index.label for index in indexes])
            if labels.size != split.samples or labels.min() < 0 or labels.max() >= len(manifest.classes):
                raise DatasetError(f"{root}: the indexes of split {name!r} do not fit the manifest; prepare it again")
            counts[name] = np.bincount(labels, minlength=len(manifest.classes))
            sums[name] = np.unique(np.concatenate([index.checksum for index in indexes]))
    return Verified(
        manifest=manifest,
        class_samples={name: tuple(found.tolist()) for name, found in counts.items()},
        shared_images=sum(np.intersect1d(a, b).size for a, b in _pairs(list(sums.values()))),
    )


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


def _pairs(found: list[NDArray[np.uint64]]) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.uint64]]]:
    for i, a in enumerate(found):
        for b in found[i + 1 :]:
            yield a, b
