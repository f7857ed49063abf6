"""The index of a shard: where each sample lies in the tar, what it is, and the checksum of its bytes.

An index is a safetensors file of columns, one row a sample, in the order of the samples in the tar:

==================  =========  =======================================================================
``offset``          int64 [n]  where the image's bytes begin in the tar, in bytes
``length``          int64 [n]  how many they are
``label``           int64 [n]  index into the manifest's classes
``width, height``   int32 [n]  of the decoded image, in pixels, before any EXIF rotation
``checksum``        uint64 [n] xxh3_64 of the image's bytes
``keys``            uint8 [k]  the samples' keys (the tar member's name up to its first dot), UTF-8, joined
``key_ends``        int64 [n]  where each key ends in ``keys``
==================  =========  =======================================================================

Further columns may be added in a minor version; readers ignore those that they do not know.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import safetensors
import safetensors.numpy
import xxhash
from numpy.typing import NDArray

from stoker.dataset.manifest import Shard, expect
from stoker.errors import DatasetError
from stoker.storage import Location

__all__ = ["ShardIndex", "payload_checksum", "read_index"]

_COLUMNS = {
    "offset": np.int64,
    "length": np.int64,
    "label": np.int64,
    "width": np.int32,
    "height": np.int32,
    "checksum": np.uint64,
}


def payload_checksum(data: bytes | memoryview) -> int:
    """The checksum of one sample's bytes, as an index holds it: xxh3_64, an unsigned 64-bit integer."""
    return xxhash.xxh3_64_intdigest(data)


@dataclass(frozen=True)
class ShardIndex:
    """The columns of an index as arrays; see the module for shapes and types."""

    offset: NDArray[np.int64]
    length: NDArray[np.int64]
    label: NDArray[np.int64]
    width: NDArray[np.int32]
    height: NDArray[np.int32]
    checksum: NDArray[np.uint64]
    keys: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.offset)

    def to_bytes(self) -> bytes:
        """The index file."""
        encoded = [key.encode() for key in self.keys]
        columns = {name: np.ascontiguousarray(getattr(self, name), dtype=kind) for name, kind in _COLUMNS.items()}
        columns["keys"] = np.frombuffer(b"".join(encoded), np.uint8)
        columns["key_ends"] = np.cumsum([len(key) for key in encoded], dtype=np.int64)
        # One entry only: safetensors writes several in an order that differs from call to call.
        return safetensors.numpy.save(columns, metadata={"stoker-index": "1.0"})

    @classmethod
    def from_bytes(cls, data: bytes) -> ShardIndex:
        """The index in ``data``.

        Raises:
            ValueError: it is not an index file, or a column is missing or of another length.
        """
        try:
            columns = safetensors.numpy.load(data)
        except safetensors.SafetensorError as error:
            raise ValueError(f"not an index file ({error})") from None
        missing = [name for name in (*_COLUMNS, "keys", "key_ends") if name not in columns]
        if missing:
            raise ValueError(f"the index lacks the columns {', '.join(missing)}")
        ends = columns["key_ends"].tolist()
        text = columns["keys"].tobytes()
        keys = tuple(text[a:b].decode() for a, b in zip([0, *ends[:-1]], ends, strict=True)) if ends else ()
        found = {name: columns[name] for name in _COLUMNS}
        if len({len(keys), *(len(column) for column in found.values())}) != 1:
            raise ValueError("the index's columns differ in length")
        return cls(**found, keys=keys)


def read_index(root: Location, shard: Shard) -> ShardIndex:
    """The index of ``shard`` of the data set at ``root``, checked against the manifest.

    Raises:
        DatasetError: it is missing or damaged for good.
        StorageError: it cannot be read, or comes with a wrong checksum however often it is read.
    """
    where = root / shard.index_path
    try:
        data = where.read(lambda body: expect(body, shard.index_bytes, shard.index_checksum))
        index = ShardIndex.from_bytes(data)
    except FileNotFoundError:
        raise DatasetError(f"{where}: missing, although the manifest names it; prepare the data set again") from None
    except ValueError as error:
        raise DatasetError(f"{where}: {error}; prepare the data set again") from None
    if len(index) != shard.samples:
        raise DatasetError(f"{where}: holds {len(index)} samples, the manifest says {shard.samples}; prepare it again")
    return index
