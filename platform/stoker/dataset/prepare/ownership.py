"""Who is preparing at a destination: one preparation at a time, the next one only when the first is dead.

The owner renews ``build/owner.json`` every few seconds by compare-and-swap. Whoever comes later watches the file: if it
changes, its owner lives and the newcomer is refused; if it does not change for three beats, or its owner was a process
of this machine that is gone, the newcomer takes it over. Nobody compares clocks of two machines.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from stoker.errors import DatasetError, StorageError
from stoker.storage import Conflict, Location
from stoker.storage.location import version_of

__all__ = ["Ownership"]

_BEAT_S = 3.0
_MISSED_BEATS = 3
_TIMEOUT_S = 5.0


class Ownership:
    """Context manager that owns the destination whose file ``place`` is; ``root`` is for messages.

    ``pause`` waits for some seconds, for tests.

    Raises:
        DatasetError: on entering, another preparation is running there; it is named.
        StorageError: the file cannot be read or written.
    """

    def __init__(
        self, place: Location, root: Location, *, beat_s: float = _BEAT_S, pause: Callable[[float], Any] = time.sleep
    ) -> None:
        # a store that is away must not keep a preparation that fails, or is finished, from ending
        self._place = place.with_timeout(min(_TIMEOUT_S, place.timeout_s))
        self._root, self._beat_s, self._pause = root, beat_s, pause
        self._token, self._beats = secrets.token_hex(8), 0
        self._version = ""
        self._ended, self._is_lost = threading.Event(), False
        self._thread = threading.Thread(target=self._renew, name="stoker-owner", daemon=True)

    def __enter__(self) -> Ownership:
        while not self._take():
            pass
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(StorageError):  # then the next one waits for three beats
            if not self._is_lost and (found := self._place.version()) and found[1] == self._version:
                self._place.delete()

    def check(self) -> None:
        """Check that this preparation still owns the destination; call it before anything is made visible.

        Raises:
            DatasetError: another one took it over, because this one had stopped for too long.
        """
        if self._is_lost:
            raise DatasetError(
                f"{self._root}: another preparation took over while this one was suspended; nothing to do here"
            )

    def end(self) -> None:
        """:meth:`check`, and renew no longer."""
        self._ended.set()
        self._thread.join()
        self.check()

    def _take(self) -> bool:
        """Own the file if nobody does or its owner is dead; False to look again."""
        found = self._place.version()
        try:
            if found is None:
                data = self._content()
                self._place.create(data)
                self._version = version_of(data)
                return True
            if not _is_gone(found[0]):
                self._watch(found[1])
            self._swap(found[1])
        except Conflict:
            return False
        return True

    def _watch(self, version: str) -> None:
        """Wait for three beats of another owner.

        Raises:
            DatasetError: it renewed the file meanwhile.
        """
        for _ in range(2 * _MISSED_BEATS):
            self._pause(self._beat_s / 2)
            now = self._place.version()
            if now is not None and now[1] != version:
                other = _read(now[0])
                raise DatasetError(
                    f"{self._root} is being prepared by process {other.get('pid')} on {other.get('host')}; "
                    "wait for it, or choose another destination"
                )

    def _renew(self) -> None:
        while not self._ended.wait(self._beat_s):
            try:
                self._swap(self._version)
            except (Conflict, FileNotFoundError):
                self._is_lost = True
                return
            except StorageError:  # the store is away: whoever takes over must reach it first
                continue

    def _swap(self, version: str) -> None:
        data = self._content()
        self._place.swap(data, version)
        self._version = version_of(data)

    def _content(self) -> bytes:
        self._beats += 1
        owner = {"host": socket.gethostname(), "boot": _boot(), "pid": os.getpid(), "token": self._token}
        return json.dumps(owner | {"beat": self._beats}).encode()


def _read(data: bytes) -> dict[str, Any]:
    try:
        return dict(json.loads(data))
    except (ValueError, TypeError):
        return {}


def _is_gone(data: bytes) -> bool:
    """Whether the owner was a process of this machine, since it was started, that is no more."""
    owner = _read(data)
    if not _boot() or owner.get("boot") != _boot() or owner.get("host") != socket.gethostname():
        return False
    pid = owner.get("pid")
    return isinstance(pid, int) and not Path(f"/proc/{pid}").exists()


def _boot() -> str:
    """This start of the machine, and the namespace in which process numbers mean something; empty if unknown."""
    with contextlib.suppress(OSError):
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    return ""
