"""Count the images that are in more than one split, in the memory of a few million of them however many there are.

The checksums of each split are kept in a temporary file as sorted runs, 8 bytes a sample. The runs are then compared a
range of checksums at a time: the checksums of a range are neighbours in each run.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Sequence
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from stoker.errors import StorageError

__all__ = ["SharedImages"]

_RUN = 2**20
"""checksums sorted at once, and about as many of each split compared at once"""
_RANGE_BITS = 10
_IN_MEMORY_BYTES = 16 * 2**20
"""of each split, before its file is on the disk"""


class SharedImages:
    """Context manager that counts the checksums which two of ``splits`` have; nothing is kept where there is one."""

    def __init__(self, splits: Sequence[str], *, run: int = _RUN) -> None:
        self._run = run
        self._splits = {name: _Sorted(run) for name in splits} if len(splits) > 1 else {}

    def __enter__(self) -> SharedImages:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for split in self._splits.values():
            split.close()

    def add(self, split: str, checksums: NDArray[np.uint64]) -> None:
        """Add the checksums of some samples of ``split``: uint64 [n].

        Raises:
            StorageError: the folder of temporary files has no room; names it.
        """
        if self._splits:
            try:
                self._splits[split].add(checksums)
            except OSError as error:
                raise _no_room(error) from None

    def count(self) -> int:
        """How many different checksums two splits have, over all pairs of splits.

        Raises:
            StorageError: the folder of temporary files has no room; names it.
        """
        try:
            steps = max((split.finish() for split in self._splits.values()), default=0)
            edges = np.linspace(0, 2**_RANGE_BITS, min(steps, 2**_RANGE_BITS) + 1).astype(int).tolist()
            return sum(self._count(first, stop) for first, stop in itertools.pairwise(edges))
        except OSError as error:
            raise _no_room(error) from None

    def _count(self, first: int, stop: int) -> int:
        parts = [split.part(first, stop) for split in self._splits.values()]
        pairs = itertools.combinations(parts, 2)
        return sum(np.intersect1d(one, other, assume_unique=True).size for one, other in pairs)


class _Sorted:
    """The checksums of one split: run i is sorted, and its range p is at ``[edges[i][p], edges[i][p + 1])``."""

    def __init__(self, run: int) -> None:
        self._run = run
        self._file = tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES)  # noqa: SIM115 - closed by close
        self._edges: list[NDArray[np.int64]] = []
        self._pending: list[NDArray[np.uint64]] = []
        self._waiting = self._total = 0

    def add(self, checksums: NDArray[np.uint64]) -> None:
        for first in range(0, len(checksums), self._run):
            some = np.array(checksums[first : first + self._run], np.uint64)
            self._pending.append(some)
            self._waiting += len(some)
            if self._waiting >= self._run:
                self._write()

    def finish(self) -> int:
        """Write what is left: into how many steps the comparison is to be cut."""
        if self._waiting:
            self._write()
        return -(-self._total // self._run)

    def part(self, first: int, stop: int) -> NDArray[np.uint64]:
        """The different checksums in the ranges ``first`` to ``stop``, sorted."""
        found = [np.empty(0, np.uint64)]
        for edges in self._edges:
            begin, end = int(edges[first]), int(edges[stop])
            self._file.seek(8 * begin)
            found.append(np.frombuffer(self._file.read(8 * (end - begin)), np.uint64))
        return np.unique(np.concatenate(found))

    def close(self) -> None:
        self._file.close()

    def _write(self) -> None:
        run = np.unique(np.concatenate(self._pending))
        self._pending, self._waiting = [], 0
        shift = np.uint64(64 - _RANGE_BITS)
        self._edges.append(self._total + np.searchsorted(run >> shift, np.arange(2**_RANGE_BITS + 1, dtype=np.uint64)))
        self._file.seek(8 * self._total)
        self._file.write(run.tobytes())
        self._total += len(run)


def _no_room(error: OSError) -> StorageError:
    folder = tempfile.gettempdir()
    return StorageError(
        f"cannot compare the splits in {folder} ({error}); set TMPDIR to a folder with 8 bytes of room for each sample",
        url=folder,
    )
