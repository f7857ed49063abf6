"""The interface of a source of images."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from stoker.dataset.prepare.entries import Entries, Entry

__all__ = ["Reader", "RunReader", "Source", "run_of", "runs", "split_name"]

_SPLITS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "test": "test",
    "testing": "test",
}


class Reader(Protocol):
    """Reads samples by their entries, from several threads; small, because it is sent with each task."""

    def read(self, entry: Entry) -> bytes:
        """Read the image file's bytes.

        Raises:
            DatasetError: it no longer exists, or is not visible to this machine.
            StorageError: no valid response within the timeout.
        """

    def with_timeout(self, timeout_s: float) -> Reader:
        """The same reader, whose reads are retried for ``timeout_s`` seconds."""


class RunReader(Reader, Protocol):
    """Reads a source whose samples are in runs (row groups of a Parquet file) that are only cheap to read whole.

    The entries of a run are contiguous and have the same ``offset`` and the same path up to its last ``/``.
    """

    def read_run(self, entries: Sequence[Entry]) -> Iterator[bytes]:
        """Read the samples of ``entries``, all of one run, in their order."""


@dataclass(frozen=True, eq=False)
class Source:
    """Images and their labels, listed completely before anything is written.

    ``splits``: ``train`` first, then ``validation`` and ``test`` where the source has them. ``strays`` are things in
    the source that cannot be samples: (path, reason). The reasons count in a data set's identity (``destination``), so
    one with strays that was prepared before a reason is reworded is no longer recognised. ``notes`` are lines that the
    report shows.
    """

    url: str
    classes: tuple[str, ...]
    splits: dict[str, Entries]
    reader: Reader | RunReader
    strays: tuple[tuple[str, str], ...] = ()
    has_runs: bool = False
    """whether the reader is a :class:`RunReader`"""
    notes: tuple[str, ...] = ()
    is_indexed: bool = False
    """whether the entries are tars of samples, to be indexed in place instead of copied"""
    places: tuple[str, ...] = ()
    """URLs of folders, besides ``url``, that samples are read from"""

    @property
    def bytes(self) -> int:
        """Total size of the samples."""
        return sum(int(entries.size.sum()) for entries in self.splits.values())

    def with_timeout(self, timeout_s: float) -> Source:
        """The same source, whose reads are retried for ``timeout_s`` seconds."""
        return replace(self, reader=self.reader.with_timeout(timeout_s))

    def with_splits(self, splits: dict[str, Entries]) -> Source:
        """The same source with other splits."""
        return replace(self, splits=splits)


def split_name(word: str) -> str | None:
    """The split named by ``word`` in any case: train(ing), validation (val, valid), test(ing); None for any other."""
    return _SPLITS.get(word.lower())


def run_of(entry: Entry) -> tuple[str, int]:
    """The run of a sample of a :class:`RunReader`'s source: its file, and its position there."""
    return entry.path.rpartition("/")[0], entry.offset


def runs(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Group contiguous entries of the same run."""
    for _, run in itertools.groupby(entries, run_of):
        yield list(run)
