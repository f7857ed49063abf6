"""What a preparation asks of a place that images come from."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from stoker.dataset.prepare.entries import Entries, Entry

__all__ = ["Reader", "RunReader", "Source", "run_of", "runs", "split_name"]

_SPLITS = {"train": "train", "validation": "validation", "val": "validation", "valid": "validation", "test": "test"}


class Reader(Protocol):
    """Reads samples by their entries, from several threads; small, for it travels with each task."""

    def read(self, entry: Entry) -> bytes:
        """The image file's bytes.

        Raises:
            DatasetError: it is gone, or this machine does not see it.
            StorageError: no valid response within the timeout.
        """

    def with_timeout(self, timeout_s: float) -> Reader:
        """The same reader, whose reads are tried again for ``timeout_s`` seconds."""


class RunReader(Reader, Protocol):
    """Of a source whose samples lie in runs (the row groups of a Parquet file) that are only cheap to read whole.

    The entries of a run stand together and share its ``offset`` and what their path says before its last ``/``.
    """

    def read_run(self, entries: Sequence[Entry]) -> Iterator[bytes]:
        """The samples of ``entries``, all of one run, in their order."""


@dataclass(frozen=True, eq=False)
class Source:
    """Images and their labels, listed whole before anything is written.

    ``splits``: ``train`` first, then ``validation`` and ``test`` where the source has them. ``strays`` are things in
    the source that cannot be samples: (path, why). ``notes`` are lines that the report shows.
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
    """whether the entries are tars of samples, to be indexed where they lie instead of copied"""

    @property
    def bytes(self) -> int:
        """Of all samples together."""
        return sum(int(entries.size.sum()) for entries in self.splits.values())

    def with_timeout(self, timeout_s: float) -> Source:
        """The same source, whose reads are tried again for ``timeout_s`` seconds."""
        return replace(self, reader=self.reader.with_timeout(timeout_s))

    def with_splits(self, splits: dict[str, Entries]) -> Source:
        """The same source, other splits."""
        return replace(self, splits=splits)


def split_name(word: str) -> str | None:
    """The split that people call ``word``: train, validation (val, valid) or test; None if it is none."""
    return _SPLITS.get(word.lower())


def run_of(entry: Entry) -> tuple[str, int]:
    """The run that a sample of a :class:`RunReader`'s source lies in: its file, and its place there."""
    return entry.path.rpartition("/")[0], entry.offset


def runs(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """The entries run by run, where neighbours are of the same."""
    for _, run in itertools.groupby(entries, run_of):
        yield list(run)
