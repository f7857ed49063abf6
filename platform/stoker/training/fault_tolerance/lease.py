"""The lease that allows a run one driver: an object in the run's folder, renewed by its holder.

``<run>/lease.json`` names its holder: host, process, job, a random token, and a counter that increases every quarter of
``PERIOD_S``. Each write is conditional on the content that the writer read last, so two processes never hold it at
once. A lease is free when its holder released it, when its holder was a process of this machine that has exited (known
at once), or when it did not change while another process watched it for ``PERIOD_S`` seconds of its own clock. Clocks
of two machines are never compared (Gray and Cheriton, *Leases*, SOSP 1989, need bounded drift only, section 2).

The workers of a run read the lease too: they exit when it is no longer their driver's, and a driver that is asked to
stop passes that on through it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import socket
import threading
import time
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import psutil

from stoker.errors import RunError, StorageError
from stoker.storage import Conflict, Location
from stoker.storage.location import version_of

__all__ = ["PERIOD_S", "Holder", "Lease", "read_holder"]

logger = logging.getLogger(__name__)

PERIOD_S = 10.0
_POLL_INTERVAL_S = 0.5


@dataclass(frozen=True)
class Holder:
    """The content of ``lease.json``."""

    token: str
    host: str
    machine: str
    """boot id and process namespace: two processes with the same value can see each other"""
    pid: int
    started: float
    """start time of the process, seconds since the epoch on its own machine: distinguishes a reused pid"""
    job: str
    """Ray's id of the submission; empty outside of a job"""
    renewed: str
    """ISO 8601 by the holder's clock, for people; nothing is decided by it"""
    beat: int = 0
    stops: bool = False
    """the workers are asked to store a checkpoint and stop"""
    released: bool = False

    @classmethod
    def this_process(cls) -> Holder:
        """This process as the holder, with a new token."""
        process = psutil.Process()
        return cls(
            token=secrets.token_hex(8),
            host=socket.gethostname(),
            machine=_machine(),
            pid=process.pid,
            started=process.create_time(),
            job=_job(),
            renewed=_now(),
        )

    def is_gone(self) -> bool | None:
        """True if the process has exited, False if it still runs, None if this machine cannot know."""
        if self.machine != _machine():
            return None
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.pid)
            return process.status() == psutil.STATUS_ZOMBIE or abs(process.create_time() - self.started) > 2
        return True

    def encoded(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode()


def read_holder(place: Location) -> Holder | None:
    """The holder of the lease at ``place``; None if nobody ever held it, or the object is not a lease.

    Raises:
        StorageError: it cannot be read.
    """
    found = place.version()
    return _parse(found[0]) if found else None


class Lease:
    """The lease at ``place`` (``<run>/lease.json``), for this process; use as a context manager around the run."""

    def __init__(self, place: Location, *, period_s: float = PERIOD_S) -> None:
        self._place, self._period_s = place, period_s
        self._mine = Holder.this_process()
        self._version: str | None = None
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._renewer = threading.Thread(target=self._renew_until_closed, name="stoker-lease", daemon=True)
        self.lost = threading.Event()
        """set when another process holds the lease, which happens only to a process that was suspended for a period"""

    @property
    def token(self) -> str:
        return self._mine.token

    def __enter__(self) -> Lease:
        """Take the lease and keep it renewed.

        Raises:
            RunError: another driver holds it; names its host, process and job and its last renewal.
            StorageError: the store does not answer.
        """
        found = self._place.version()
        free = self._free_version(found) if found else None
        try:
            self._write(replace(self._mine, renewed=_now()), free)
        except Conflict:
            raise self._refusal(read_holder(self._place)) from None
        self._renewer.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Release it."""
        self._ended.set()
        self._renewer.join()
        if not self.lost.is_set():
            with contextlib.suppress(StorageError):  # then it expires
                self._write(replace(self._mine, released=True, renewed=_now()), self._version)

    def request_stop(self) -> None:
        """Ask the run's workers, which read the lease every second, to store a checkpoint and stop.

        Raises:
            StorageError: it cannot be written.
        """
        with self._lock:
            self._mine = replace(self._mine, stops=True)
        self._renew()

    # -- inside ----------------------------------------------------------------------------------------------------

    def _free_version(self, found: tuple[bytes, str]) -> str | None:
        """The version of the lease that may be replaced, None if it was deleted: ``found``, or what became of it.

        Raises:
            RunError: somebody holds it.
        """
        holder = _parse(found[0])
        if holder is not None and holder.released:
            return found[1]
        gone = holder.is_gone() if holder else None
        if gone is False:
            raise self._refusal(holder)
        if gone:
            return found[1]
        began = time.monotonic()
        logger.info("%s is held by %s; watching it for %g s", self._place, _who(holder), self._period_s)
        while time.monotonic() - began < self._period_s:
            time.sleep(_POLL_INTERVAL_S)
            now = self._place.version()
            if now is None:
                return None
            if now[1] == found[1]:
                continue
            changed = _parse(now[0])
            if changed is None or not changed.released:
                raise self._refusal(changed)
            return now[1]
        return found[1]

    def _refusal(self, holder: Holder | None) -> RunError:
        run = self._place.url.rsplit("/", 2)[1]
        when = f" renewed its lease at {holder.renewed}" if holder else " renews its lease"
        return RunError(
            f"run {run!r} already has a driver: {_who(holder)}{when} ({self._place}); "
            "wait for it or stop it, or choose another name"
        )

    def _renew_until_closed(self) -> None:
        while not self._ended.wait(self._period_s / 4) and not self.lost.is_set():
            try:
                self._renew()
            except StorageError as error:
                logger.warning("cannot renew the run's lease, retrying: %s", error)

    def _renew(self) -> None:
        with self._lock:
            again = replace(self._mine, beat=self._mine.beat + 1, renewed=_now())
            try:
                self._write(again, self._version)
            except Conflict:
                now = self._place.version()
                if now is not None and (holder := _parse(now[0])) is not None and holder.token == self.token:
                    self._version = now[1]  # our own write, whose response was lost
                else:
                    self.lost.set()

    def _write(self, holder: Holder, expected: str | None) -> None:
        data = holder.encoded()
        self._place.swap(data, expected)
        self._mine, self._version = holder, version_of(data)


def _parse(data: bytes) -> Holder | None:
    try:
        return Holder(**json.loads(data))
    except (ValueError, TypeError):
        return None


def _who(holder: Holder | None) -> str:
    if holder is None:
        return "an unknown process"
    return f"process {holder.pid} on {holder.host}{f', job {holder.job}' if holder.job else ''}"


def _machine() -> str:
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return f"{socket.gethostname()} {psutil.boot_time():.0f}"


def _job() -> str:
    with contextlib.suppress(ValueError, AttributeError):
        configured = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
        return str(configured.get("metadata", {}).get("job_submission_id", ""))
    return ""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
