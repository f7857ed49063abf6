"""List the files at a location, each with its size and a stamp that changes when it is written again."""

from __future__ import annotations

from typing import Any

from stoker.errors import DatasetError
from stoker.storage import Location
from stoker.storage.retry import call_with_retries

__all__ = ["FileStats", "files_below", "files_in", "stamp_of"]

FileStats = dict[str, tuple[int, str]]
"""path to (bytes, stamp)"""


def files_in(location: Location) -> tuple[FileStats, list[str]]:
    """(files, names of folders, sorted) directly in the folder ``location``, hidden ones left out.

    An empty or missing folder gives nothing.

    Raises:
        DatasetError: ``location`` is a file.
        StorageError: the place cannot be read.
    """

    def once() -> list[dict[str, Any]]:
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
    """Every file at any depth below ``location`` by its relative path, hidden ones left out."""

    def once() -> dict[str, dict[str, Any]]:
        location.filesystem.invalidate_cache()
        return dict(location.filesystem.find(location.path, detail=True))

    try:
        found = call_with_retries(once, what="list", url=location.url, timeout_s=location.timeout_s)
    except FileNotFoundError:
        return {}
    start = len(location.path.rstrip("/")) + 1
    return {
        path[start:]: (int(info["size"] or 0), stamp_of(info))
        for path, info in found.items()
        if path[start:] and not any(part.startswith(".") for part in path[start:].split("/"))
    }


def stamp_of(info: dict[str, Any]) -> str:
    """The ETag or time of modification in a filesystem's ``info``: it changes when the file is written again."""
    return str(next((info[k] for k in ("ETag", "etag", "mtime", "LastModified", "created") if info.get(k)), ""))
