"""The fence of a run's checkpoints: only the newest attempt, one group of workers, commits and deletes.

    <run>/attempt.json      the newest attempt; while it commits, also the manifest that it is about to write

Ray restarts workers under one driver, and a rank 0 that was cut off or suspended may wake up after its successors have
begun. So an attempt claims the fence before it reads or deletes anything, by a conditional write (:meth:`Fence.claim`),
and each commit is a conditional write of the same object (Kleppmann, *Designing Data-Intensive Applications*, 2017,
"Fencing tokens"; here the store itself refuses the older one). What follows the commit, writing the manifest, may be
late: the next attempt finds it in ``attempt.json`` and writes it itself before it looks for the newest checkpoint.

Deletions cannot be conditional on another object. They are safe by their order: list, :meth:`Fence.check`, delete what
was listed. All of it was there while this attempt was the newest, so none of it is a newer one's.
"""

from __future__ import annotations

import json
import secrets
import socket
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime

from stoker.errors import RunError
from stoker.storage import Conflict, Location
from stoker.storage.location import version_of

__all__ = ["Fence"]


@dataclass(frozen=True)
class _Attempt:
    """The content of ``attempt.json``."""

    token: str
    lease: str
    """token of the driver's lease; empty without a driver"""
    order: tuple[int, int]
    """among the attempts of that driver: the number of its controller, and of the workers that this one started"""
    host: str
    started: str
    """ISO 8601 by the host's clock, for people; nothing is decided by it"""
    commit: dict[str, str] | None = None
    """``{"file": …, "manifest": …}`` while it is not known to be written"""

    def encoded(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode()


class Fence:
    """The right of one attempt to change the checkpoints in ``folder``, recorded at ``place``. For rank 0 alone.

    ``lease`` is the token of the driver's lease and ``order`` the attempt's place among those of that driver: a later
    one may be superseded only by a greater one. ``check_lease`` raises if another driver has taken the run over.
    """

    def __init__(
        self,
        place: Location,
        folder: Location,
        *,
        lease: str = "",
        order: tuple[int, int] = (0, 0),
        check_lease: Callable[[], None] = lambda: None,
    ) -> None:
        self._place, self._folder, self._check_lease = place, folder, check_lease
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self._mine = _Attempt(secrets.token_hex(8), lease, order, socket.gethostname(), now)
        self._version: str | None = None

    def claim(self) -> None:
        """Become the newest attempt; completes the commit that the one before has begun.

        Raises:
            RunError: a newer attempt, or another driver, was first.
            StorageError: the store does not answer.
        """
        while True:
            found = self._place.version()
            self._check_lease()  # after that read: whoever takes the lease later changes this version
            if found is not None and (before := _parse(found[0])) is not None:
                if self._mine.lease and before.lease == self._mine.lease and before.order >= self._mine.order:
                    raise self._superseded(before)
                if before.commit is not None:
                    (self._folder / before.commit["file"]).write(before.commit["manifest"].encode())
            try:
                self._swap(self._mine, found[1] if found else None)
            except Conflict:
                continue
            return

    def check(self) -> None:
        """Check that this is still the newest attempt.

        Raises:
            RunError: it is not, or another driver has taken the run over.
        """
        self._check_lease()
        found = self._place.version()
        holder = _parse(found[0]) if found else None
        if holder is None or holder.token != self._mine.token:
            raise self._superseded(holder)

    def commit(self, file: str, manifest: bytes) -> None:
        """Write ``manifest`` as ``file`` in the folder, unless a newer attempt has begun.

        Raises:
            RunError: a newer one has, or another driver has taken the run over; nothing was committed.
        """
        self.check()
        self._change(replace(self._mine, commit={"file": file, "manifest": manifest.decode()}))
        (self._folder / file).write(manifest)
        self._change(replace(self._mine, commit=None))

    def _change(self, mine: _Attempt) -> None:
        try:
            self._swap(mine, self._version)
        except Conflict:
            found = self._place.version()
            raise self._superseded(_parse(found[0]) if found else None) from None

    def _swap(self, mine: _Attempt, expected: str | None) -> None:
        data = mine.encoded()
        self._place.swap(data, expected)
        self._mine, self._version = mine, version_of(data)

    def _superseded(self, holder: _Attempt | None) -> RunError:
        run = self._place.url.rsplit("/", 2)[1]
        who = f"those that began at {holder.started} with rank 0 on {holder.host}" if holder else "an unknown attempt"
        return RunError(
            f"run {run!r}: these workers were superseded by {who} ({self._place}); what is not committed is discarded"
        )


def _parse(data: bytes) -> _Attempt | None:
    try:
        found = json.loads(data)
        return _Attempt(**{**found, "order": tuple(found["order"])})
    except (ValueError, TypeError, KeyError):
        return None
