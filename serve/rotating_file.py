"""A log file that is rotated by its size and never has half a line, also on a full disk."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

__all__ = ["RotatingFile"]


class RotatingFile:
    """A file that takes lines whole or not at all, and makes place for a new one at ``most_bytes``."""

    def __init__(self, path: Path, most_bytes: int, older: int) -> None:
        """Append to ``path``; as it would pass ``most_bytes`` it becomes ``path.1``, and ``older`` such are kept.

        Raises:
            OSError: it cannot be opened.
        """
        self.path = path
        self._most_bytes = most_bytes
        self._older = older
        self._handle = self._open()

    def append(self, lines: list[str]) -> None:
        """Append ``lines``.

        Raises:
            OSError: the disk is full, for example; none of them is in the file.
        """
        data = "".join(f"{line}\n" for line in lines).encode()
        size = os.fstat(self._handle).st_size
        if size and size + len(data) > self._most_bytes:
            self._rotate()
            size = 0
        written = os.write(self._handle, data)
        if written < len(data):
            os.ftruncate(self._handle, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        """Close the file; closing it again does nothing."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def _open(self) -> int:
        return os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)

    def _rotate(self) -> None:
        for number in range(self._older, 0, -1):
            newer = self.path.with_name(f"{self.path.name}.{number - 1}") if number > 1 else self.path
            with contextlib.suppress(FileNotFoundError):
                os.replace(newer, self.path.with_name(f"{self.path.name}.{number}"))
        before, self._handle = self._handle, self._open()
        os.close(before)
