"""The listing of a source, in columns: 41 bytes a sample and its path, so that 100 million fit in memory.

A Python object for each sample would take ten times that. An :class:`Entry` is created on access.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from stoker.errors import DatasetError

__all__ = ["Entries", "Entry", "Listing", "shown"]

_LONGEST_KEY = 90
"""in bytes: with its extension it fits the name field of a ustar header (POSIX.1-1988), 100 bytes"""
_STEP = 1 << 16


@dataclass(frozen=True, slots=True)
class Entry:
    """One sample as a source lists it.

    ``key`` names it in the data set; ``path`` locates it in the source (bytes of a file's name that are not UTF-8 are
    surrogates, as Python has them); ``bytes`` is its length, or an estimate where a source has no better; ``stamp``
    changes when the file is written again; ``offset`` is its position in the file, in units of its source.
    """

    key: str
    label: int
    path: str
    bytes: int
    stamp: int
    offset: int = 0

    @property
    def shown_path(self) -> str:
        """The path for people and reports: text that every encoding of Unicode can hold."""
        return shown(self.path)


@dataclass(frozen=True, eq=False)
class Entries:
    """The samples of a split in the order in which the source lists them; one row a sample, ``[n]`` each."""

    paths: bytearray
    """all paths, concatenated: UTF-8, or as the file system has them"""
    start: NDArray[np.int64]
    length: NDArray[np.int32]
    label: NDArray[np.int32]
    size: NDArray[np.int64]
    """of the samples, in bytes"""
    stamp: NDArray[np.uint64]
    offset: NDArray[np.int64]
    is_repeated: NDArray[np.bool_]
    """an earlier path has the same natural key"""
    key_start: int
    """characters of a path that its key omits: the split's folder"""

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, row: int) -> Entry:
        path = self.path(row)
        return Entry(
            self._key(path, bool(self.is_repeated[row])),
            int(self.label[row]),
            path,
            int(self.size[row]),
            int(self.stamp[row]),
            int(self.offset[row]),
        )

    def __iter__(self) -> Iterator[Entry]:
        return (self[row] for row in range(len(self)))

    def path(self, row: int) -> str:
        """The path of the sample in ``row``."""
        start = int(self.start[row])
        return self.paths[start : start + int(self.length[row])].decode(errors="surrogateescape")

    def take(self, rows: NDArray[Any]) -> Entries:
        """Select rows (numbers, or a mask), in this order."""
        return replace(
            self,
            start=self.start[rows],
            length=self.length[rows],
            label=self.label[rows],
            size=self.size[rows],
            stamp=self.stamp[rows],
            offset=self.offset[rows],
            is_repeated=self.is_repeated[rows],
        )

    def draws(self, salt: str) -> NDArray[np.uint64]:
        """A random number for each sample, a function of ``salt`` and its key alone: uint64 [n].

        The same on every machine and in every version of Python and NumPy.
        """
        keys = (self._key(self.path(n), bool(repeated)) for n, repeated in enumerate(self.is_repeated))
        drawn = (xxhash.xxh3_64_intdigest(f"{salt}:{key}".encode()) for key in keys)
        return np.fromiter(drawn, np.uint64, len(self))

    def content_digest(self) -> str:
        """A sha256 over names, labels, places and sizes."""
        hasher = hashlib.sha256()
        for begin in range(0, len(self), _STEP):
            some = slice(begin, begin + _STEP)
            starts, ends = self.start[some].tolist(), (self.start[some] + self.length[some]).tolist()
            hasher.update(b"\n".join(self.paths[a:b] for a, b in zip(starts, ends, strict=True)))
            for column in (self.label, self.size, self.offset, self.is_repeated):
                hasher.update(np.ascontiguousarray(column[some]).tobytes())
        return hasher.hexdigest()

    def stamps_digest(self) -> str:
        """A sha256 that changes when a file is written again."""
        return hashlib.sha256(np.ascontiguousarray(self.stamp).tobytes()).hexdigest()

    def _key(self, path: str, is_repeated: bool) -> str:
        path = path[self.key_start :]
        key = _natural_key(path)
        if is_repeated or len(key.encode()) > _LONGEST_KEY:
            short = key.encode()[: _LONGEST_KEY - 17].decode(errors="ignore")
            return f"{short}-{xxhash.xxh3_64_hexdigest(path.encode(errors='surrogateescape'))}"
        return key


class Listing:
    """Builds :class:`Entries` row by row. Paths must be unique and added in a reproducible order."""

    def __init__(self, key_start: int = 0) -> None:
        self._key_start = key_start
        self._paths = bytearray()
        self._length, self._label = array("i"), array("i")
        self._size, self._offset = array("q"), array("q")
        self._stamp, self._natural = array("Q"), array("Q")

    def __len__(self) -> int:
        return len(self._label)

    def add(self, path: str, label: int, bytes_: int, stamp: str = "", offset: int = 0) -> None:
        """Append a sample, see :class:`Entry`.

        Raises:
            DatasetError: its name is not text of any kind.
        """
        try:
            encoded = path.encode(errors="surrogateescape")
        except UnicodeEncodeError:  # half a surrogate pair, which JSON can hold
            raise DatasetError(f"{path!r}: this file's name is not UTF-8; rename it") from None
        self._paths += encoded
        self._length.append(len(encoded))
        self._label.append(label)
        self._size.append(bytes_)
        self._offset.append(offset)
        self._stamp.append(xxhash.xxh3_64_intdigest(stamp.encode()))
        self._natural.append(xxhash.xxh3_64_intdigest(_natural_key(path[self._key_start :]).encode()))

    def entries(self) -> Entries:
        """The added samples. They share memory with this object, to which nothing can be added afterwards."""
        length = np.frombuffer(self._length, np.int32)
        natural = np.frombuffer(self._natural, np.uint64)
        order = np.argsort(natural, kind="stable")
        is_repeated = np.zeros(len(length), np.bool_)
        is_repeated[order[1:]] = natural[order[1:]] == natural[order[:-1]]
        return Entries(
            paths=self._paths,
            start=np.cumsum(length, dtype=np.int64) - length,
            length=length,
            label=np.frombuffer(self._label, np.int32),
            size=np.frombuffer(self._size, np.int64),
            stamp=np.frombuffer(self._stamp, np.uint64),
            offset=np.frombuffer(self._offset, np.int64),
            is_repeated=is_repeated,
            key_start=self._key_start,
        )


def shown(path: str) -> str:
    r"""``path`` with bytes that are not UTF-8 written out, as ``note\xf1.txt``; any other path as it is."""
    try:
        path.encode()
    except UnicodeEncodeError:
        try:
            return path.encode(errors="surrogateescape").decode(errors="backslashreplace")
        except UnicodeEncodeError:
            return path.encode(errors="backslashreplace").decode()
    return path


def _natural_key(path: str) -> str:
    """The path without extension and dots (a WebDataset key ends at the first), and without a URL's or root's mark.

    Always UTF-8: bytes of a file's name that are not are written out.
    """
    path = shown(path).replace("://", "/").lstrip("/")
    folder, _, file = path.rpartition("/")
    stem = file.rpartition(".")[0] or file
    return (f"{folder}/{stem}" if folder else stem).replace(".", "_")
