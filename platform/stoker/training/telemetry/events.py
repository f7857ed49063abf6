"""The event log of a run, JSON lines in its folder: attempts, progress, epochs.

    <run>/events/1764080000123456789-1f2e3d4c-0000.jsonl
                 start of the segment (nanoseconds since 1970), token of its writer, number of the writer's segment

Object stores cannot append, so events go to segments of bounded size: a writer rewrites its own newest segment when
there are more events, and starts another when it is full. A writer that was presumed dead therefore overwrites
nothing. The oldest segments are deleted when there are too many: 16 MB are kept, some weeks of progress.
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
    """Write events to ``folder``; for rank 0. Thread-safe."""

    def __init__(self, folder: Location, outbox: Outbox | None = None) -> None:
        self._folder, self._outbox = folder, outbox or Outbox()
        self._owns_outbox = outbox is None
        self._lock = threading.Lock()
        self._token, self._number = secrets.token_hex(4), 0
        self._segment: Location | None = None
        self._lines = bytearray()

    def add(self, kind: str, **fields: Any) -> None:
        """Record that ``kind`` happened now; ``fields`` must be JSON. Returns at once and writes in the background."""
        line = json.dumps({"at": round(time.time(), 3), "kind": kind, **fields}).encode() + b"\n"
        with self._lock:
            if self._segment is None or len(self._lines) + len(line) > _SEGMENT_BYTES:
                name = f"{time.time_ns():019d}-{self._token}-{self._number:04d}.jsonl"
                self._segment, self._number = self._folder / name, self._number + 1
                self._lines = bytearray()
            self._lines += line
            self._outbox.put(self._segment, bytes(self._lines))

    def prune(self) -> None:
        """Delete the oldest segments above the bound; called once per attempt."""
        for name in _segments(self._folder)[:-_SEGMENTS]:
            (self._folder / name).delete()

    def flush(self, timeout_s: float = 10.0) -> None:
        """Wait up to ``timeout_s`` seconds until all added events are in the store."""
        self._outbox.flush(timeout_s)

    def close(self) -> None:
        """Flush, and stop the background thread if this object started it."""
        if self._owns_outbox:
            self._outbox.close()
        else:
            self._outbox.flush()


def read_events(folder: Location, newest: int | None = None) -> Iterator[dict[str, Any]]:
    """Iterate over the events in ``folder``, oldest first; with ``newest``, of that many newest segments only.

    Raises:
        StorageError: the store cannot be read, or a segment is damaged.
    """
    names = _segments(folder)
    for name in names if newest is None else names[-newest:]:
        try:
            lines = (folder / name).read().splitlines()
        except FileNotFoundError:  # pruned since it was listed
            continue
        for line in lines:
            try:
                yield dict(json.loads(line))
            except ValueError:
                raise StorageError(
                    f"{folder / name}: damaged, not valid JSON; delete it", url=(folder / name).url
                ) from None


def _segments(folder: Location) -> list[str]:
    return [name for name in folder.children() if name.endswith(".jsonl")]
