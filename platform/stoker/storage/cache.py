"""Blocks kept on the node's own disk, so that the second epoch reads nothing from the store.

Everything that can go wrong with a disk makes a miss, never a failure: a damaged block is read from the store again, a
full or unwritable disk keeps no more blocks and says so once, and the folder may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import xxhash

from stoker.storage.cache_folder import CacheFolder
from stoker.storage.retry import BadBody

__all__ = ["BlockCache", "CacheCounters"]

logger = logging.getLogger(__name__)

_HEADER = struct.Struct("<8sq16s16s16x")  # magic, the data's bytes, xxh3_128 of the key, xxh3_128 of the data
_MAGIC = b"stokerB1"
_REFUSED_FOR_S = 30.0  # a full cache is listed no more often than that to see whether somebody deleted from it


@dataclass
class CacheCounters:
    """What became of the calls so far. ``hits`` gave ``bytes`` bytes; of the misses, ``damaged`` were there but wrong.

    ``stored`` blocks of ``stored_bytes`` bytes were put, ``refused`` ones were not, and ``evicted`` left for them.
    """

    hits: int = 0
    bytes: int = 0
    misses: int = 0
    damaged: int = 0
    stored: int = 0
    stored_bytes: int = 0
    refused: int = 0
    evicted: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False, compare=False)

    def add(self, **counts: int) -> None:
        """Add to the counters named."""
        with self._lock:
            for name, count in counts.items():
                setattr(self, name, getattr(self, name) + count)

    def snapshot(self) -> dict[str, int]:
        """The counters by name, all taken at one moment."""
        with self._lock:
            return {f.name: getattr(self, f.name) for f in fields(self) if f.init}


class BlockCache:
    """At most ``bytes_`` bytes below ``folder``, shared by the processes of a node that give the same folder.

    The blocks lie in ``folder/stoker-blocks``, which only this user can read. Safe to use from many threads. Blocks
    that the processes now using the cache have put or got stay until the last of them is gone; when there is no room
    beside them, others are not admitted (:mod:`stoker.storage.cache_folder` says why).
    """

    def __init__(self, folder: str | os.PathLike[str], bytes_: int) -> None:
        self.counters = CacheCounters()
        self._bytes = bytes_
        self._admits = bytes_ > 0
        self._refuses_until_s = 0.0
        self._path = Path(os.path.abspath(os.path.expanduser(folder))) / "stoker-blocks"
        self._folder: CacheFolder | None = None
        try:
            self._folder = CacheFolder(self._path, bytes_)
        except OSError as error:
            self._stop_admitting(error)

    def __enter__(self) -> BlockCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the use of the folder; the blocks stay."""
        if self._folder is not None:
            self._folder.close()
            self._folder = None

    def get(self, key: str, check: Callable[[Any], None] | None = None) -> memoryview | None:
        """The block stored under ``key``, as a memoryview of unsigned bytes, or None.

        ``check(block)``, if given, decides whether the bytes are right, by raising :class:`BadBody`; otherwise the
        block's own checksum does. A block that is not right is deleted.
        """
        block = self._read(key, check) if self._folder is not None else None
        if block is None:
            self.counters.add(misses=1)
        else:
            self.counters.add(hits=1, bytes=len(block))
        return block

    def put(self, key: str, data: bytes | memoryview) -> None:
        """Keep ``data`` under ``key``, if there is room; visible to others whole or not at all."""
        folder = self._folder
        size = _HEADER.size + len(data)
        if folder is None or not self._admits or size > self._bytes or time.monotonic() < self._refuses_until_s:
            self.counters.add(refused=1)
            return
        name = xxhash.xxh3_128_hexdigest(key.encode())
        try:
            self._store(folder, name, _header(key, data), data)
        except BufferError:
            self._refuses_until_s = time.monotonic() + _REFUSED_FOR_S
            self.counters.add(refused=1)
        except FileNotFoundError:  # the folder was deleted under us
            self.counters.add(refused=1)
        except OSError as error:
            self.counters.add(refused=1)
            self._stop_admitting(error)

    # -- inside ----------------------------------------------------------------------------------------------------

    def _read(self, key: str, check: Callable[[Any], None] | None) -> memoryview | None:
        folder = self._folder
        assert folder is not None
        path = folder.block(xxhash.xxh3_128_hexdigest(key.encode()))
        try:
            file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        size = 0
        try:
            status = os.fstat(file)
            size = status.st_size
            if not stat.S_ISREG(status.st_mode):
                return None
            stored = os.read(file, size)  # into memory of its own, the interpreter's lock released
            block = memoryview(stored)[_HEADER.size :]
            if _is_right(key, stored, block, check):
                if status.st_mtime_ns < folder.since_ns:
                    os.utime(file)
                return block
        except OSError as error:  # a disk that cannot be read: as good as damaged
            logger.debug("cannot read %s: %s", path, error)
        finally:
            os.close(file)
        self.counters.add(damaged=1)
        with contextlib.suppress(OSError):
            folder.remove(path, size)
        return None

    def _store(self, folder: CacheFolder, name: str, header: bytes, data: bytes | memoryview) -> None:
        size = len(header) + len(data)
        begun = folder.begin(name, size)
        if begun is None:  # another process was faster
            return
        file, path, evicted = begun
        try:
            written = os.writev(file, [header, data])
            if written != size:  # its room was set aside, so the disk is not simply full
                raise OSError(errno.EIO, f"{written} of {size} bytes were written")
            os.rename(path, folder.block(name))
        except BaseException:
            with contextlib.suppress(OSError):
                folder.remove(path, size)
            raise
        finally:
            os.close(file)
        self.counters.add(stored=1, stored_bytes=len(data), evicted=evicted)

    def _stop_admitting(self, error: OSError) -> None:
        if self._admits:
            reason = "the disk is full" if error.errno in {errno.ENOSPC, errno.EDQUOT} else str(error)
            logger.warning(
                "no more blocks are kept in %s: %s; the others are read from the store. Give a folder on a disk with "
                "more room, or a smaller bound",
                self._path,
                reason,
            )
        self._admits = False


def _header(key: str, data: bytes | memoryview) -> bytes:
    return _HEADER.pack(_MAGIC, len(data), xxhash.xxh3_128_digest(key.encode()), xxhash.xxh3_128_digest(data))


def _is_right(key: str, stored: bytes, block: memoryview, check: Callable[[Any], None] | None) -> bool:
    if len(stored) < _HEADER.size:
        return False
    magic, size, key_sum, data_sum = _HEADER.unpack_from(stored)
    if magic != _MAGIC or size != len(block) or key_sum != xxhash.xxh3_128_digest(key.encode()):
        return False
    if check is None:
        return bool(data_sum == xxhash.xxh3_128_digest(block))
    try:
        check(block)
    except BadBody:
        return False
    return True
