"""TensorBoard event files, built in memory because an object store takes whole objects, not appends.

A file is a sequence of records (TFRecord): length (uint64), its masked CRC-32C, the bytes of an ``Event`` message,
their masked CRC-32C, all little-endian. The messages and the checksum are tensorboardX's, which Ray brings.
"""

from __future__ import annotations

import secrets
import socket
import struct
import time
from collections.abc import Mapping

from stoker.storage import Location
from stoker.training.telemetry.outbox import Outbox

__all__ = ["EventFiles"]

_FILE_BYTES = 256 * 1024


class EventFiles:
    """Scalars as event files in ``folder``: the newest file is rewritten with each report until it is full."""

    def __init__(self, folder: Location, outbox: Outbox) -> None:
        self._folder, self._outbox = folder, outbox
        self._place: Location | None = None
        self._content = bytearray()
        self._number = 0

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point at ``step`` to the curve of each name."""
        from tensorboardX.proto import event_pb2, summary_pb2  # lazy: only rank 0 needs it

        if self._place is None or len(self._content) > _FILE_BYTES:
            self._begin(event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2"))
        points = [summary_pb2.Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._add(event_pb2.Event(wall_time=time.time(), step=step, summary=summary_pb2.Summary(value=points)))
        if self._place is not None:
            self._outbox.put(self._place, bytes(self._content))

    def close(self) -> None:
        """Nothing to do: the outbox belongs to the recorder, which flushes it."""

    def _begin(self, first: object) -> None:
        """Start the next file; TensorBoard reads a folder's files by name and never returns to an earlier one."""
        host = socket.gethostname()
        name = f"events.out.tfevents.{time.time_ns() // 10**9:010d}.{self._number:04d}.{host}.{secrets.token_hex(4)}"
        self._place, self._number = self._folder / name, self._number + 1
        self._content = bytearray()
        self._add(first)

    def _add(self, event: object) -> None:
        data: bytes = event.SerializeToString()  # type: ignore[attr-defined]
        length = struct.pack("<Q", len(data))
        self._content += length + _checksum(length) + data + _checksum(data)


def _checksum(data: bytes) -> bytes:
    from tensorboardX.record_writer import masked_crc32c

    return struct.pack("<I", masked_crc32c(data))
