"""List the first objects below a prefix, without listing all of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from fsspec.implementations.local import LocalFileSystem

__all__ = ["first_objects"]

_PAGE = 1000
"""keys of a response, S3's own bound"""


def first_objects(filesystem: Any, path: str) -> Iterator[str]:
    """Paths of the objects below ``path``, relative to it, in the store's order; hidden ones are left out.

    Nothing is listed before it is asked for: a page of keys at a time on S3, a folder at a time elsewhere; of a local
    one, no more entries than are asked for.

    Raises:
        FileNotFoundError: nothing is there, or its bucket does not exist.
    """
    if isinstance(filesystem, LocalFileSystem):
        return _files(path, "")
    found = _keys(filesystem, path) if hasattr(filesystem, "call_s3") else _walked(filesystem, path)
    return (name for name in found if name and not any(part.startswith(".") for part in name.split("/")))


def _files(folder: str, prefix: str) -> Iterator[str]:
    """Files and links below ``folder``; links are not followed."""
    try:
        entries = os.scandir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return
    with entries as found:
        for entry in found:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _files(entry.path, f"{prefix}{entry.name}/")
            else:
                yield f"{prefix}{entry.name}"


def _keys(filesystem: Any, path: str) -> Iterator[str]:
    """Keys of a bucket; those that end in a slash are markers of empty folders."""
    bucket, key, _ = filesystem.split_path(path)
    prefix = f"{key.rstrip('/')}/" if key else ""
    request: dict[str, Any] = {"Bucket": bucket, "Prefix": prefix, "MaxKeys": _PAGE, **filesystem.req_kw}
    while True:
        page = filesystem.call_s3("list_objects_v2", **request)
        for found in page.get("Contents", ()):
            if not found["Key"].endswith("/"):
                yield found["Key"][len(prefix) :]
        if not page.get("IsTruncated") or not page.get("NextContinuationToken"):
            return
        request["ContinuationToken"] = page["NextContinuationToken"]


def _walked(filesystem: Any, path: str) -> Iterator[str]:
    """A folder at a time, on any filesystem of fsspec."""
    filesystem.invalidate_cache()
    start = len(path.rstrip("/")) + 1
    for folder, _, files in filesystem.walk(path, on_error="raise"):  # never a shorter list
        for name in files:
            if name:
                yield f"{folder.rstrip('/')}/{name}"[start:]
