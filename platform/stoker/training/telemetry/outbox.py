"""Write small objects of a run in the background, so that reporting never delays or fails the run."""

from __future__ import annotations

import logging
import threading

from stoker.errors import StorageError
from stoker.storage import Location

__all__ = ["Outbox"]

logger = logging.getLogger(__name__)

_RETRY_S = 5.0


class Outbox:
    """A background writer that keeps only the newest content of each object. Thread-safe.

    While the store is unavailable, objects wait (one content per location) and are retried; one warning is logged.
    """

    def __init__(self) -> None:
        self._pending: dict[Location, bytes] = {}
        self._change = threading.Condition()
        self._is_writing = self._is_closed = self._is_down = False
        self._thread = threading.Thread(target=self._work, name="stoker-outbox", daemon=True)
        self._thread.start()

    def put(self, place: Location, data: bytes) -> None:
        """Queue ``data`` for ``place``, replacing content that is still queued for it."""
        with self._change:
            self._pending[place] = data
            self._change.notify_all()

    def flush(self, timeout_s: float = 30.0) -> bool:
        """Wait up to ``timeout_s`` seconds; return whether everything is written."""
        with self._change:
            return self._change.wait_for(lambda: not self._pending and not self._is_writing, timeout_s)

    def close(self, timeout_s: float = 30.0) -> None:
        """Flush for up to ``timeout_s`` seconds, and stop the thread."""
        self.flush(timeout_s)
        with self._change:
            self._is_closed = True
            self._change.notify_all()
        self._thread.join(1.0)

    def _work(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._pending or self._is_closed)
                if self._is_closed:
                    return
                place = next(iter(self._pending))
                data = self._pending.pop(place)
                self._is_writing = True
            failed = self._write(place, data)
            with self._change:
                if failed:
                    self._pending.setdefault(place, data)
                self._is_writing = False
                self._change.notify_all()
                if failed:
                    self._change.wait_for(lambda: self._is_closed, _RETRY_S)

    def _write(self, place: Location, data: bytes) -> bool:
        """Return whether the write failed."""
        try:
            place.write(data)
        except (StorageError, OSError) as error:
            if not self._is_down:
                logger.warning("%s cannot be written now and will be retried: %s", place, " ".join(str(error).split()))
            self._is_down = True
            return True
        self._is_down = False
        return False
