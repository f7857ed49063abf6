"""A seekable file of exact range reads at a location, for parsers that need a file."""

from __future__ import annotations

import io

from stoker.storage import Location

__all__ = ["RangeFile"]


class RangeFile(io.RawIOBase):
    """The bytes ``[start, start + size)`` of the object at ``location``.

    fsspec's own files may be short or spliced without an error; these reads are exact and retried. ``ahead``: least
    bytes that a request fetches, which saves requests for a parser that reads little and often.
    """

    def __init__(self, location: Location, size: int, *, start: int = 0, ahead: int = 0) -> None:
        super().__init__()
        self._location = location
        self._start = start
        self._size = size
        self._ahead = ahead
        self._at = 0
        self._held, self._held_at = b"", 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence])
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        stop = self._size if size is None or size < 0 else min(self._size, self._at + size)
        if stop <= self._at:
            return b""
        if not self._held_at <= self._at <= stop <= self._held_at + len(self._held):
            fetch = min(self._size, max(stop, self._at + self._ahead))
            self._held = bytes(self._location.read_range(self._start + self._at, self._start + fetch))
            self._held_at = self._at
        found = self._held[self._at - self._held_at : stop - self._held_at]
        self._at = stop
        return found

    def readall(self) -> bytes:
        return self.read()

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        found = self.read(len(buffer))
        buffer[: len(found)] = found
        return len(found)
