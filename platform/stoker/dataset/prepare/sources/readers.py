"""Readers of samples that are bytes at a location: a file each, or a range of an archive.

==================  =================================================  ============================================
reader              an entry's path                                    sources
==================  =================================================  ============================================
`FileReader`        a file below the folder                            a folder of images
`ListedFileReader`  relative to the list, absolute, or a URL           a list (CSV, JSON lines)
`ArchiveReader`     ``<archive>#<member>``, read at its offset         ImageNet's archives, WebDataset tars
==================  =================================================  ============================================

What a library has to decode (row groups of Parquet, torchvision's data sets) is read in that source's own module.
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass, replace

from stoker.dataset.prepare.entries import Entry
from stoker.errors import DatasetError, StorageError
from stoker.storage import Location, locate

__all__ = ["ArchiveReader", "FileReader", "ListedFileReader", "missing", "resolve"]


@dataclass(frozen=True)
class FileReader:
    """Reads each sample from a file of its own, whose path is relative to ``location``."""

    location: Location

    def with_timeout(self, timeout_s: float) -> FileReader:
        return replace(self, location=self.location.with_timeout(timeout_s))

    def read(self, entry: Entry) -> bytes:
        where = self.location / entry.path
        try:
            return where.read()
        except FileNotFoundError:
            raise missing(where, "the source", advice=", and broken links must be removed") from None


@dataclass(frozen=True)
class ListedFileReader:
    """Reads files whose paths are relative to ``folder``, absolute or URLs."""

    folder: Location

    def with_timeout(self, timeout_s: float) -> ListedFileReader:
        return replace(self, folder=self.folder.with_timeout(timeout_s))

    def read(self, entry: Entry) -> bytes:
        where = resolve(self.folder, entry.path)
        try:
            return where.read()
        except FileNotFoundError:
            raise missing(where, "the files of the list") from None


@dataclass(frozen=True)
class ArchiveReader:
    """Reads samples ``<archive>#<member>`` at their offset in the archive, below ``location``."""

    location: Location

    def with_timeout(self, timeout_s: float) -> ArchiveReader:
        return replace(self, location=self.location.with_timeout(timeout_s))

    def read(self, entry: Entry) -> bytes:
        where = self.location / entry.path.partition("#")[0]
        try:
            return bytes(where.read_range(entry.offset, entry.offset + entry.bytes))
        except FileNotFoundError:
            raise missing(where, "the archives") from None


def missing(where: Location, what: str, *, advice: str = "") -> DatasetError:
    """The error for an object that was listed but is not found when it is read."""
    return DatasetError(
        f"{where}: listed a moment ago but not there now; where several machines prepare, all must see {what} "
        f"(or give --local){advice}"
    )


def resolve(folder: Location, path: str) -> Location:
    """The location of ``path``: absolute, a URL, or relative to ``folder``, also above it (``../``).

    Raises:
        StorageError: ``..`` leads out of the bucket.
    """
    if "://" in path or path.startswith("/"):
        return locate(path, timeout_s=folder.timeout_s)
    if path.startswith("..") and "://" not in folder.url:
        return replace(folder, url=posixpath.normpath(f"{folder.url}/{path}"))
    while path.startswith("../"):
        path, folder = path[3:], replace(folder, url=folder.url.rpartition("/")[0])
        if folder.url.endswith(("/", ":")):
            raise StorageError(
                f"{path}: leads out of the bucket of the list; give its URL in the list instead", url=folder.url
            )
    return folder / path
