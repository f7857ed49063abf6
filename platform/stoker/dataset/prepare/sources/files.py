"""List the files at a location, each with its size and a stamp that changes when it is written again.

On a local file system links are followed, as ``torchvision.datasets.ImageFolder`` follows them; a link to a folder
that it is in is left out, since what it leads to is listed already. So are pipes, sockets and devices. A link that
leads nowhere is listed as a file, so that reading it names it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import Any

from stoker.errors import DatasetError
from stoker.storage import Location
from stoker.storage.retry import call_with_retries

__all__ = ["FileStats", "files_below", "files_in", "stamp_of"]

FileStats = dict[str, tuple[int, str]]
"""path to (bytes, stamp)"""
_Identity = tuple[int, int]
"""of a local folder: its device and its number there"""


def files_in(location: Location) -> tuple[FileStats, list[str]]:
    """(files, names of folders, sorted) directly in the folder ``location``, hidden ones left out.

    An empty or missing folder gives nothing.

    Raises:
        DatasetError: ``location`` is a file.
        StorageError: the place cannot be read.
    """

    def once() -> list[dict[str, Any]]:
        if location.is_local and os.path.isdir(location.path):
            return list(_scan(location.path))
        location.filesystem.invalidate_cache()
        return list(location.filesystem.ls(location.path, detail=True))

    try:
        found = call_with_retries(once, what="list", url=location.url, timeout_s=location.timeout_s)
    except (FileNotFoundError, NotADirectoryError):
        found = []
    own = location.path.rstrip("/")
    files: FileStats = {}
    folders = set()
    for info in found:
        path = str(info["name"]).rstrip("/")
        if path == own:
            if info["type"] == "file" and info["size"]:
                raise DatasetError(f"{location} is a file, not a folder; give the folder that holds the class folders")
            continue
        name = path.rpartition("/")[2]
        if name.startswith("."):
            continue
        if info["type"] == "directory":
            folders.add(name)
        else:
            files[name] = int(info["size"] or 0), stamp_of(info)
    return files, sorted(folders)


def files_below(location: Location) -> FileStats:
    """Every file at any depth below ``location`` by its relative path, hidden ones left out.

    Raises:
        StorageError: the place, or a folder below it, cannot be read.
    """
    if not location.is_local:
        found = location.find()
        return {path: (int(info["size"] or 0), stamp_of(info)) for path, info in found.items() if path}
    start = len(location.path.rstrip("/")) + 1

    def once() -> FileStats:
        return {str(info["name"])[start:]: (int(info["size"]), stamp_of(info)) for info in _scan_below(location.path)}

    try:
        return dict(call_with_retries(once, what="list", url=location.url, timeout_s=location.timeout_s))
    except FileNotFoundError:
        return {}


_STAMPS = ("ETag", "etag", "mtime", "LastModified", "Last-Modified", "created")
"""as S3, others, local disks, S3, web servers and Google call it"""


_STAMPS = ("ETag", "etag", "mtime", "LastModified", "Last-Modified", "created")
"""as S3, others, local disks, S3's listings, web servers and Google call it"""


def stamp_of(info: dict[str, Any]) -> str:
    """The ETag or time of modification in a filesystem's ``info``: it changes when the file is written again."""
    return str(next((info[name] for name in _STAMPS if info.get(name)), ""))


def _scan(folder: str) -> Iterator[dict[str, Any]]:
    """What is in a local folder, as fsspec's ``ls`` describes it, but for links: as what they lead to."""
    with os.scandir(folder) as found:
        for one in found:
            if one.name.startswith("."):
                continue
            try:
                status = one.stat()
            except FileNotFoundError:  # removed meanwhile, or a link that leads nowhere
                if not one.is_symlink():
                    continue
                status = one.stat(follow_symlinks=False)
            except OSError:  # a link that leads to itself
                status = one.stat(follow_symlinks=False)
            kind = "directory" if stat.S_ISDIR(status.st_mode) else "file"
            if kind == "directory" or stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode):
                yield {
                    "name": os.path.join(folder, one.name),
                    "type": kind,
                    "size": 0 if stat.S_ISLNK(status.st_mode) else status.st_size,
                    "mtime": status.st_mtime,
                    "created": status.st_ctime,
                    "identity": (status.st_dev, status.st_ino),
                }


def _scan_below(folder: str) -> Iterator[dict[str, Any]]:
    """Every file at any depth below a local folder; a folder is not entered from within itself."""
    if not os.path.isdir(folder):
        return
    top = os.stat(folder)
    waiting: list[tuple[str, frozenset[_Identity]]] = [(folder, frozenset({(top.st_dev, top.st_ino)}))]
    while waiting:
        inside, above = waiting.pop()
        for info in _scan(inside):
            if info["type"] == "file":
                yield info
            elif info["identity"] not in above:
                waiting.append((info["name"], above | {info["identity"]}))
