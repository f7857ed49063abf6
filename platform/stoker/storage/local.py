"""Local files: atomic writes, creation by one of many processes, reads without a copy."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

__all__ = ["create_file", "locked", "read_file_range", "write_file"]


def write_file(path: Path, data: bytes) -> None:
    """Replace the file's content atomically, creating its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def create_file(path: Path, data: bytes) -> None:
    """Create the file with ``data``; raises FileExistsError if it exists."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.link(temporary, path)
    finally:
        os.unlink(temporary)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Exclude other processes and threads from this block, for the same ``path``."""
    with open(path.with_name(f".{path.name}.lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def read_file_range(path: str, start: int, stop: int) -> bytes:
    """Read the bytes ``[start, stop)`` of a file, fewer if it ends earlier."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = os.pread(file, stop - start, start)
        if len(data) == stop - start:  # a read of up to 2 GiB is complete; no copy is made
            return data
        parts = [data]
        while parts[-1] and sum(map(len, parts)) < stop - start:
            begun = sum(map(len, parts))
            parts.append(os.pread(file, stop - start - begun, start + begun))
        return b"".join(parts)
    finally:
        os.close(file)
