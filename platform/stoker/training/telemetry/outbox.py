"""Small objects of a run, written beside the step loop: what tells of a run never delays it and never ends it."""

from __future__ import annotations

import logging
import threading

from stoker.errors import StorageError
from stoker.storage import Location

__all__ = ["Outbox"]

logger = logging.getLogger(__name__)

_AGAIN_S = 5.0


class Outbox:
    """Writes objects in the background, of each place only the newest content; safe to use from many threads.

    While the store does not take them, they wait (one content a place), and one warning says so.
    """

    def __init__(self) -> None:
        self._waiting: dict[Location, bytes] = {}
        self._change = threading.Condition()
        self._is_writing = self._is_closed = self._is_down = False
        self._thread = threading.Thread(target=self._work, name="stoker-outbox", daemon=True)
        self._thread.start()

    def put(self, place: Location, data: bytes) -> None:
        """Have ``data`` written to ``place`` soon, in place of what waits for it."""
        with self._change:
            self._waiting[place] = data
            self._change.notify_all()

    def flush(self, timeout_s: float = 30.0) -> bool:
        """Wait until all is written, ``timeout_s`` at most; whether it is."""
        with self._change:
            return self._change.wait_for(lambda: not self._waiting and not self._is_writing, timeout_s)

    def close(self, timeout_s: float = 30.0) -> None:
        """Write what waits, ``timeout_s`` seconds at most, and end."""
        self.flush(timeout_s)
        with self._change:
            self._is_closed = True
            self._change.notify_all()
        self._thread.join(1.0)

    def _work(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._waiting or self._is_closed)
                if self._is_closed:
                    return
                place = next(iter(self._waiting))
                data = self._waiting.pop(place)
                self._is_writing = True
            failed = self._write(place, data)
            with self._change:
                if failed:
                    self._waiting.setdefault(place, data)
                self._is_writing = False
                self._change.notify_all()
                if failed:
                    self._change.wait_for(lambda: self._is_closed, _AGAIN_S)

    def _write(self, place: Location, data: bytes) -> bool:
        """Whether it failed."""
        try:
            place.write(data)
        except (StorageError, OSError) as error:
            if not self._is_down:
                logger.warning("%s is written later: %s", place, " ".join(str(error).split()))
            self._is_down = True
            return True
        self._is_down = False
        return False
