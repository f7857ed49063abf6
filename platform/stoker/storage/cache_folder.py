"""The folder of a block cache: size, users and eviction. Shared by the processes of a node.

==================  ================================================================================================
``usage``           the bytes in the folder as of the last scan; locked (flock) while it is changed
``users``           locked (flock, shared) by each process that uses the folder; touched when the first one opens it
``<name>.block``    one block; its modification time is when it was stored, or first used by the present users
``<name>.*.new``    a block being written, locked by its writer; an unlocked one was left by a dead writer
==================  ================================================================================================

Why entries that the present users have used are never evicted: an epoch reads every block once, in another order each
time, so the least recently used block is needed soonest, and eviction by last use turns a cache of half the data
into one that never hits. Keeping the present blocks hits half the time (Mohan and others, *Analyzing and Mitigating
Data Stalls in DNN Training*, VLDB 2021, section 4.1). Blocks of earlier runs are evicted, the longest unused first.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ["CacheFolder"]

_USAGE = struct.Struct("<8sq")
_MAGIC = b"stoker01"
_EVICTED_FRACTION = 0.05  # of the bound at a time, as each eviction lists the folder


class _Entry(NamedTuple):
    used_ns: int
    bytes: int
    path: str


class CacheFolder:
    """Stores at most ``bound`` bytes over all processes. Each method may be called from any thread.

    Raises:
        OSError: the folder cannot be created, written or locked, or belongs to another user.
    """

    def __init__(self, path: Path, bound: int) -> None:
        self.path = path
        self._bound = bound
        self._make()
        self._users = os.open(path / "users", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with self._locked() as usage:
            try:
                fcntl.flock(self._users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass
            else:  # no other user: a new period starts, by the clock that stamps the files
                os.utime(self._users)
                self._write(usage, sum(entry.bytes for entry in self._scan()))
            fcntl.flock(self._users, fcntl.LOCK_SH)
        self.since_ns = os.fstat(self._users).st_mtime_ns

    def close(self) -> None:
        """Release the folder: this process no longer counts as a user."""
        os.close(self._users)

    def block(self, name: str) -> str:
        """The path of a block."""
        return f"{self.path}/{name}.block"

    def begin(self, name: str, size: int) -> tuple[int, str, int] | None:
        """Make room for a block and open it for writing, with its bytes reserved on the disk.

        Returns a locked file descriptor, the path to rename from, and the number of evicted blocks; None if the block
        exists already.

        Raises:
            BufferError: there is no room, and nothing may be evicted.
        """
        with self._locked() as usage:
            if os.path.lexists(self.block(name)):
                return None
            total, evicted = self._read(usage), 0
            if total is None or total + size > self._bound:
                total, evicted = self._make_room(size)
                self._write(usage, total)
            if total + size > self._bound:
                raise BufferError
            path = f"{self.path}/{name}.{secrets.token_hex(4)}.new"
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
                os.posix_fallocate(file, 0, size)  # a full disk fails here, and a scan counts the reserved bytes
            except OSError:
                os.close(file)
                os.unlink(path)
                raise
            self._write(usage, total + size)
            return file, path, evicted

    def publish(self, path: str, name: str, size: int) -> bool:
        """Make the written file at ``path`` the block ``name``; False, and it is deleted, if another was faster."""
        with self._locked() as usage:
            if not os.path.lexists(self.block(name)):
                os.rename(path, self.block(name))
                return True
            os.unlink(path)
            total = self._read(usage)
            if total is not None:
                self._write(usage, max(0, total - size))
            return False

    def remove(self, path: str, size: int) -> None:
        """Delete a file, if it still exists, and subtract its size from the usage."""
        with contextlib.suppress(FileNotFoundError), self._locked() as usage:
            os.unlink(path)
            total = self._read(usage)
            if total is not None:
                self._write(usage, max(0, total - size))

    # -- inside ----------------------------------------------------------------------------------------------------

    def _make(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            self.path.mkdir(mode=0o700)
        found = self.path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            raise PermissionError(f"{self.path} is not a folder of this user")
        if stat.S_IMODE(found.st_mode) != 0o700:
            self.path.chmod(0o700)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            file = os.open(self.path / "usage", flags, 0o600)
        except FileNotFoundError:  # the folder was deleted, which is allowed
            self._make()
            file = os.open(self.path / "usage", flags, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
        finally:
            os.close(file)

    def _read(self, usage: int) -> int | None:
        record = os.pread(usage, _USAGE.size, 0)
        if len(record) != _USAGE.size:
            return None
        magic, total = _USAGE.unpack(record)
        return int(total) if magic == _MAGIC and total >= 0 else None

    def _write(self, usage: int, total: int) -> None:
        os.pwrite(usage, _USAGE.pack(_MAGIC, total), 0)

    def _make_room(self, size: int) -> tuple[int, int]:
        """Evict for ``size`` bytes, if enough may be; returns the bytes left and the number of evicted blocks."""
        entries = self._scan()
        total = sum(entry.bytes for entry in entries)
        need = total + size - self._bound
        if need <= 0:
            return total, 0
        old = sorted(entry for entry in entries if entry.used_ns < self.since_ns)
        if sum(entry.bytes for entry in old) < need:
            return total, 0
        freed, count = 0, 0
        for entry in old:
            if freed >= max(need, _EVICTED_FRACTION * self._bound):
                break
            with contextlib.suppress(FileNotFoundError):
                os.unlink(entry.path)
            freed, count = freed + entry.bytes, count + 1
        return total - freed, count

    def _scan(self) -> list[_Entry]:
        """All entries that take room; files of dead writers are deleted. The caller holds the lock."""
        found: list[_Entry] = []
        with os.scandir(self.path) as entries:
            for entry in entries:
                if not entry.name.endswith((".block", ".new")):
                    continue
                with contextlib.suppress(FileNotFoundError):
                    if entry.name.endswith(".new") and _is_left_behind(entry.path):
                        os.unlink(entry.path)
                        continue
                    status = entry.stat(follow_symlinks=False)
                    # a block being written is never evicted
                    used_ns = status.st_mtime_ns if entry.name.endswith(".block") else 2**63
                    found.append(_Entry(used_ns, status.st_size, entry.path))
        return found


def _is_left_behind(path: str) -> bool:
    """Whether the writer of ``path`` died: the kernel released its lock. Files are locked before others may scan."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return True  # a link, which stoker never writes
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(file)
    return True
