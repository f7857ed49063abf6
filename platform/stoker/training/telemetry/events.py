"""What happened in a run, as lines of JSON in its folder: attempts, progress, epochs, faults, the end.

    <run>/events/1764080000123456789-1f2e3d4c-0000.jsonl
                 when the segment began (nanoseconds since 1970), who wrote it, which of his it is

Object stores cannot append, so events go to segments of bounded size: a writer writes its own newest segment anew
when there are more events, and begins another when it is full. A writer that was thought dead therefore overwrites
nothing. The oldest segments leave when there are too many: 16 MB are kept, some weeks of progress.
Their names sort by time, so ``cat`` of all of them is ``events.jsonl``; each line is
``{"at": seconds since 1970, "kind": "progress", …}``.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Iterator
from typing import Any

from stoker.errors import StorageError
from stoker.storage import Location
from stoker.training.telemetry.outbox import Outbox

__all__ = ["Events", "read_events"]

_SEGMENT_BYTES = 128 * 1024
_SEGMENTS = 128


class Events:
    """Writes events to ``folder``; for rank 0 and the driver. Safe to use from many threads."""

    def __init__(self, folder: Location, outbox: Outbox | None = None) -> None:
        self._folder, self._outbox = folder, outbox or Outbox()
        self._owns_outbox = outbox is None
        self._lock = threading.Lock()
        self._token, self._number = secrets.token_hex(4), 0
        self._segment: Location | None = None
        self._lines = bytearray()

    def add(self, kind: str, **fields: Any) -> None:
        """Note that ``kind`` happened now; ``fields`` must be JSON. Returns at once, the writing goes on beside."""
        line = json.dumps({"at": round(time.time(), 3), "kind": kind, **fields}).encode() + b"\n"
        with self._lock:
            if self._segment is None or len(self._lines) + len(line) > _SEGMENT_BYTES:
                name = f"{time.time_ns():019d}-{self._token}-{self._number:04d}.jsonl"
                self._segment, self._number = self._folder / name, self._number + 1
                self._lines = bytearray()
            self._lines += line
            self._outbox.put(self._segment, bytes(self._lines))

    def prune(self) -> None:
        """Delete the oldest segments above the bound; once an attempt is enough."""
        for name in _segments(self._folder)[:-_SEGMENTS]:
            (self._folder / name).delete()

    def flush(self, timeout_s: float = 10.0) -> None:
        """Wait until what was added is in the store, ``timeout_s`` at most."""
        self._outbox.flush(timeout_s)

    def close(self) -> None:
        """Write what waits, and end."""
        if self._owns_outbox:
            self._outbox.close()
        else:
            self._outbox.flush()


def read_events(folder: Location, newest: int | None = None) -> Iterator[dict[str, Any]]:
    """The events in ``folder``, oldest first; with ``newest``, those of that many newest segments only.

    Raises:
        StorageError: the store cannot be read.
    """
    names = _segments(folder)
    for name in names if newest is None else names[-newest:]:
        try:
            lines = (folder / name).read().splitlines()
        except FileNotFoundError:  # it left in between
            continue
        for line in lines:
            try:
                yield dict(json.loads(line))
            except ValueError:
                raise StorageError(f"{folder / name}: damaged, not JSON; delete it", url=(folder / name).url) from None


def _segments(folder: Location) -> list[str]:
    return [name for name in folder.children() if name.endswith(".jsonl")]
