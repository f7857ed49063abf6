"""The index of a shard: offset in the tar, label, size and checksum of each sample.

An index is a safetensors file of columns, one row a sample, in the order of the samples in the tar:

==================  =========  =======================================================================
``offset``          int64 [n]  where the sample's bytes begin in the tar, in bytes
``length``          int64 [n]  how many they are
``label``           int64 [n]  index into the manifest's classes
``width, height``   int32 [n]  of the decoded image, in pixels, before any EXIF rotation; 0 if it is not an image
``checksum``        uint64 [n] xxh3_64 of the sample's bytes
``keys``            uint8 [k]  the samples' keys (the tar member's name up to its first dot), UTF-8, joined
``key_ends``        int64 [n]  where each key ends in ``keys``
==================  =========  =======================================================================

Since 1.1, for images that can be cut before they are decoded (``stoker.dataset.format.jpeg``):

=========================  =========  =================================================================
``orientation``            uint8 [n]  EXIF orientation, 1 to 8
``frame, scan``            int32 [n]  offsets of the frame header and of the first interval in the bytes
``mcu_width, mcu_height``  uint8 [n]  of a minimum coded unit, in pixels
``interval``               uint16 [n] MCUs of a restart interval; 0 where an image cannot be cut
``table``                  int32 [n]  offset of the table of the intervals' lengths in the bytes; 0: none
=========================  =========  =================================================================

Further columns may be added in a minor version; readers ignore unknown ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import xxhash
from numpy.typing import NDArray

from stoker.dataset.format.jpeg import Marks
from stoker.dataset.format.manifest import Shard, expect
from stoker.errors import DatasetError
from stoker.storage import BlockCache, Location, Reads

__all__ = ["IndexRow", "ShardIndex", "payload_checksum", "read_index"]

_COLUMNS: dict[str, Any] = {
    "offset": np.int64,
    "length": np.int64,
    "label": np.int64,
    "width": np.int32,
    "height": np.int32,
    "checksum": np.uint64,
}
_MARKS: dict[str, Any] = {
    "orientation": np.uint8,
    "frame": np.int32,
    "scan": np.int32,
    "mcu_width": np.uint8,
    "mcu_height": np.uint8,
    "interval": np.uint16,
    "table": np.int32,
}


_TYPES: dict[str, Any] = _COLUMNS | _MARKS | {"keys": np.uint8, "key_ends": np.int64}
_SAFETENSORS_NAMES = {
    np.int64: "I64",
    np.int32: "I32",
    np.uint64: "U64",
    np.uint16: "U16",
    np.uint8: "U8",
}


def payload_checksum(data: bytes | memoryview) -> int:
    """The checksum of one sample's bytes, as an index holds it: xxh3_64, an unsigned 64-bit integer."""
    return xxhash.xxh3_64_intdigest(data)


@dataclass(frozen=True)
class IndexRow:
    """One sample: the columns above in their singular; ``marks`` if its bytes are a JPEG that can be cut."""

    offset: int
    length: int
    label: int
    width: int
    height: int
    checksum: int
    key: str
    orientation: int = 1
    marks: Marks | None = None


@dataclass(frozen=True)
class ShardIndex:
    """The columns of an index as arrays; see the module for shapes and types. Make one by :meth:`of`.

    ``marked`` holds the columns since 1.1 about how images can be cut; it is empty if the index is older.
    """

    offset: NDArray[np.int64]
    length: NDArray[np.int64]
    label: NDArray[np.int64]
    width: NDArray[np.int32]
    height: NDArray[np.int32]
    checksum: NDArray[np.uint64]
    key_bytes: NDArray[np.uint8]
    key_ends: NDArray[np.int64]
    marked: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.offset)

    @property
    def keys(self) -> list[str]:
        """All keys, in the order of the samples."""
        return [self.key(row) for row in range(len(self))]

    def key(self, row: int) -> str:
        """The key of sample ``row``."""
        begin = int(self.key_ends[row - 1]) if row else 0
        return self.key_bytes[begin : int(self.key_ends[row])].tobytes().decode(errors="backslashreplace")

    @classmethod
    def of(cls, rows: Iterable[IndexRow]) -> ShardIndex:
        """The index of ``rows``, in their order."""
        found = list(rows)
        columns = {name: np.array([getattr(r, name) for r in found], kind) for name, kind in _COLUMNS.items()}
        marked = {
            name: np.array([getattr(r.marks, name) if r.marks else 0 for r in found], kind)
            for name, kind in _MARKS.items()
            if name != "orientation"
        }
        marked["orientation"] = np.array([r.orientation for r in found], np.uint8)
        keys = [r.key.encode() for r in found]
        key_bytes = np.frombuffer(b"".join(keys), np.uint8)
        return cls(
            **columns, key_bytes=key_bytes, key_ends=np.cumsum([len(k) for k in keys], dtype=np.int64), marked=marked
        )

    def orientation(self, row: int) -> int:
        """The EXIF orientation of sample ``row``, 1 to 8; 1 means upright."""
        return int(self.marked["orientation"][row]) if self.marked else 1

    def marks(self, row: int) -> Marks | None:
        """How the image of sample ``row`` can be cut, or None if it cannot."""
        if not self.marked or not self.marked["interval"][row]:
            return None
        columns = self.marked
        return Marks(
            width=int(self.width[row]),
            height=int(self.height[row]),
            frame=int(columns["frame"][row]),
            scan=int(columns["scan"][row]),
            mcu_width=int(columns["mcu_width"][row]),
            mcu_height=int(columns["mcu_height"][row]),
            interval=int(columns["interval"][row]),
            table=int(columns["table"][row]),
        )

    def to_bytes(self) -> bytes:
        """The index file."""
        columns = {name: np.ascontiguousarray(getattr(self, name), dtype=kind) for name, kind in _COLUMNS.items()}
        columns |= {name: np.ascontiguousarray(column) for name, column in self.marked.items()}
        columns |= {"keys": self.key_bytes, "key_ends": self.key_ends}
        # One entry only: safetensors writes several in an order that differs from call to call.
        return safetensors.numpy.save(columns, metadata={"stoker-index": "1.1" if self.marked else "1.0"})

    @classmethod
    def from_bytes(cls, data: bytes) -> ShardIndex:
        """The index in ``data``.

        Raises:
            ValueError: it is not an index file, or a column is missing, of another type or of another length.
        """
        try:
            stored = safetensors.deserialize(data)  # type: ignore[no-untyped-call]
        except safetensors.SafetensorError as error:
            raise ValueError(f"not an index file ({error})") from None
        columns = {name: _column(name, found) for name, found in stored if name in _TYPES}
        missing = [name for name in (*_COLUMNS, "keys", "key_ends") if name not in columns]
        if missing:
            raise ValueError(f"the index lacks the columns {', '.join(missing)}")
        found = {name: columns[name] for name in _COLUMNS}
        found |= {"key_bytes": columns["keys"], "key_ends": columns["key_ends"]}
        marked = {name: columns[name] for name in _MARKS if name in columns}
        rows = (*(found[name] for name in (*_COLUMNS, "key_ends")), *marked.values())
        if len({len(column) for column in rows}) != 1:
            raise ValueError("the index's columns differ in length")
        ends = columns["key_ends"]
        if (np.diff(ends, prepend=0) < 0).any() or (len(ends) and ends[-1] != len(columns["keys"])):
            raise ValueError("the index's key_ends do not fit its keys")
        return cls(**found, marked=marked if len(marked) == len(_MARKS) else {})


def _column(name: str, stored: dict[str, Any]) -> NDArray[Any]:
    kind = _TYPES[name]
    if stored["dtype"] != _SAFETENSORS_NAMES[kind] or len(stored["shape"]) != 1:
        raise ValueError(
            f"the index's column {name} is {stored['dtype']} {stored['shape']}, not {_SAFETENSORS_NAMES[kind]} [n]"
        )
    return np.frombuffer(stored["data"], kind)


def read_index(
    root: Location, shard: Shard, *, reads: Reads | None = None, cache: BlockCache | None = None
) -> ShardIndex:
    """The index of ``shard`` of the data set at ``root``, checked against the manifest; from ``cache`` if it holds it.

    Raises:
        DatasetError: it is missing or permanently damaged.
        StorageError: it cannot be read, or every read within the timeout has a wrong checksum.
    """
    where = root / shard.index_path

    def check(body: memoryview) -> None:
        expect(body, shard.index_bytes, shard.index_checksum)

    try:
        data = cache.get(shard.index_checksum, check) if cache else None
        if data is None:
            data = where.read_range(0, shard.index_bytes, check, reads=reads)
            if cache:
                cache.put(shard.index_checksum, data)
        index = ShardIndex.from_bytes(bytes(data))
    except FileNotFoundError:
        raise DatasetError(f"{where}: missing, although the manifest names it; prepare the data set again") from None
    except ValueError as error:
        raise DatasetError(f"{where}: {error}; prepare the data set again") from None
    if len(index) != shard.samples:
        raise DatasetError(
            f"{where}: holds {len(index)} samples, the manifest says {shard.samples}; prepare the data set again"
        )
    return index
