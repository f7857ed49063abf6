"""The pages of an index: the same rows again, row by row, so that a few of them are one small range read.

Pages follow the index in its object, from ``index_bytes`` on. Neither the manifest's checksum of the index nor the
fingerprint covers them, so a data set has the same fingerprint and order with and without them, and a reader that does
not know them reads the index alone. Each page has ``PAGE_ROWS`` rows (the last one what remains) and is ``page_bytes``
long, the manifest's field; page p begins at ``index_bytes + p * page_bytes``:

==============================  ==================================================================================
uint64                          xxh3_64 of the index's checksum as the manifest holds it (ASCII), p as uint32, and
                                the rest of the page
rows, 61 bytes each, packed     the columns of the index in the order of ``_ROW``; ``key_end``: uint32, where the
                                row's key ends in the page's keys
keys, UTF-8                     one after another; zeros up to ``page_bytes``
==============================  ==================================================================================

The checksum binds a page to its index and its place: a damaged page, one of another shard or of an older preparation
is a failed read, never wrong rows. All numbers are little-endian.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from stoker.dataset.format.index import ShardIndex
from stoker.dataset.format.manifest import PAGE_ROWS, Shard, checksum
from stoker.errors import DatasetError
from stoker.storage import BlockCache, Location, Reads
from stoker.storage.retry import BadBody

__all__ = ["PAGED_BYTES", "PackedIndex", "check_pages", "index_of_pages", "pack_index", "read_pages", "verify_pages"]

PAGED_BYTES = 8 * 2**10
"""an index of at most so many bytes has no pages: a whole one costs little more than a request"""
_COLUMNS = ("offset", "length", "label", "width", "height", "checksum")
_MARKS = ("orientation", "frame", "scan", "mcu_width", "mcu_height", "interval", "table")
_KINDS = ("<i8", "<i8", "<i8", "<i4", "<i4", "<u8", "u1", "<i4", "<i4", "u1", "u1", "<u2", "<i4")
_ROW = np.dtype([*zip((*_COLUMNS, *_MARKS), _KINDS, strict=True), ("key_end", "<u4")])
_SUM_BYTES = 8


@dataclass(frozen=True)
class PackedIndex:
    """An index's object: ``data`` is the index, ``index_bytes`` long, and its pages of ``page_bytes`` each, or 0."""

    data: bytes
    index_bytes: int
    index_checksum: str
    page_bytes: int


def pack_index(index: ShardIndex) -> PackedIndex:
    """The object of ``index``: with pages if it is large, unless a long key would make them larger than two indexes."""
    packed = index.to_bytes()
    sum_ = checksum(packed)
    pages = _pages(index) if len(packed) > PAGED_BYTES else []
    page_bytes = max(map(len, pages), default=0) + _SUM_BYTES
    if not pages or page_bytes * len(pages) > 2 * len(packed):
        return PackedIndex(packed, len(packed), sum_, 0)
    rests = [page.ljust(page_bytes - _SUM_BYTES, b"\0") for page in pages]
    signed = [_sum(sum_, number, rest) + rest for number, rest in enumerate(rests)]
    return PackedIndex(b"".join((packed, *signed)), len(packed), sum_, page_bytes)


def read_pages(
    root: Location,
    shard: Shard,
    first: int,
    stop: int,
    *,
    reads: Reads | None = None,
    cache: BlockCache | None = None,
) -> list[bytes]:
    """The pages ``first`` to ``stop`` of the index of ``shard``, checked; those that ``cache`` lacks in one range read.

    Raises:
        DatasetError: the index is missing.
        StorageError: it cannot be read, or every read within the timeout has a damaged page.
    """
    found: dict[int, bytes] = {}
    if cache:
        for page in range(first, stop):
            held = cache.get(_key(shard, page), partial(check_pages, shard=shard, first=page))
            if held is not None:
                found[page] = bytes(held)
    missing = [page for page in range(first, stop) if page not in found]
    if missing:
        begin, end = missing[0], missing[-1] + 1
        where, size = root / shard.index_path, shard.page_bytes
        try:
            body = where.read_range(
                shard.index_bytes + begin * size,
                shard.index_bytes + end * size,
                partial(check_pages, shard=shard, first=begin),
                reads=reads,
            )
        except FileNotFoundError:
            raise DatasetError(
                f"{where}: missing, although the manifest names it; prepare the data set again"
            ) from None
        for page in range(begin, end):
            found[page] = bytes(body[(page - begin) * size : (page - begin + 1) * size])
            if cache:
                cache.put(_key(shard, page), found[page])
    return [found[page] for page in range(first, stop)]


def verify_pages(root: Location, shard: Shard, index: ShardIndex) -> None:
    """Read the pages of ``index``, if it has some, and compare their rows with its own.

    Raises:
        DatasetError: the index's object is missing, or a page says something else.
        StorageError: it cannot be read, or every read within the timeout has a damaged page.
    """
    if not shard.page_bytes:
        return
    found = index_of_pages(shard, 0, read_pages(root, shard, 0, -(-shard.samples // PAGE_ROWS)))
    if found.to_bytes() != (index if index.marked else replace(index, marked=_unmarked(len(index)))).to_bytes():
        raise DatasetError(
            f"{root / shard.index_path}: its pages do not hold the rows of the index; prepare the data set again"
        )


def check_pages(body: memoryview | bytes, shard: Shard, first: int) -> None:
    """Raise :class:`BadBody` unless ``body`` holds whole pages of the index of ``shard``, from ``first`` on."""
    size = shard.page_bytes
    if not len(body) or len(body) % size:
        raise BadBody(f"{len(body)} bytes received instead of pages of {size}")
    view = memoryview(body)
    for at in range(0, len(view), size):
        page = first + at // size
        if view[at : at + _SUM_BYTES] != _sum(shard.index_checksum, page, view[at + _SUM_BYTES : at + size]):
            raise BadBody(f"wrong checksum of page {page} of the index")


def index_of_pages(shard: Shard, first: int, pages: Sequence[bytes]) -> ShardIndex:
    """The rows of checked ``pages``, neighbours from ``first`` on, as an index that begins at ``first * PAGE_ROWS``."""
    parts, keys, ends, at = [], [], [], 0
    for number, page in enumerate(pages, first):
        count = min(PAGE_ROWS, shard.samples - number * PAGE_ROWS)
        rows = np.frombuffer(page, _ROW, count, _SUM_BYTES)
        begin = _SUM_BYTES + count * _ROW.itemsize
        length = int(rows["key_end"][-1])
        parts.append(rows)
        keys.append(page[begin : begin + length])
        ends.append(rows["key_end"].astype(np.int64) + at)
        at += length
    found = np.concatenate(parts) if len(parts) > 1 else parts[0]
    return ShardIndex(
        **{name: found[name] for name in _COLUMNS},
        key_bytes=np.frombuffer(b"".join(keys), np.uint8),
        key_ends=np.concatenate(ends),
        marked={name: found[name] for name in _MARKS},
    )


def _pages(index: ShardIndex) -> list[bytes]:
    rows = np.zeros(len(index), _ROW)
    for name in _COLUMNS:
        rows[name] = getattr(index, name)
    for name, column in (index.marked or _unmarked(len(index))).items():
        rows[name] = column
    pages = []
    for first in range(0, len(index), PAGE_ROWS):
        part = rows[first : first + PAGE_ROWS]
        begin = int(index.key_ends[first - 1]) if first else 0
        ends = index.key_ends[first : first + PAGE_ROWS]
        part["key_end"] = ends - begin
        pages.append(part.tobytes() + index.key_bytes[begin : int(ends[-1])].tobytes())
    return pages


def _unmarked(count: int) -> dict[str, NDArray[Any]]:
    """The columns since 1.1 of an index that lacks them."""
    return {name: np.full(count, name == "orientation", _ROW[name]) for name in _MARKS}


def _sum(index_checksum: str, page: int, rest: bytes | memoryview) -> bytes:
    hasher = xxhash.xxh3_64(index_checksum.encode() + page.to_bytes(4, "little"))
    hasher.update(rest)
    return hasher.intdigest().to_bytes(_SUM_BYTES, "little")


def _key(shard: Shard, page: int) -> str:
    return f"{shard.index_checksum}/page-{page}"
