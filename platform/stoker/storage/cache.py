"""Cache blocks on the node's disk, so that later epochs read nothing from the store.

Any problem with the disk is a miss, never a failure: a damaged block is read from the store again, a full or unwritable
disk stores no more blocks and logs this once, and the folder may be deleted at any time.
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
_REFUSED_FOR_S = 30.0  # a full cache is not listed more often to see whether files were deleted from it


@dataclass
class CacheCounters:
    """Counters of a cache: ``hits`` of ``bytes`` bytes; ``misses``, of which ``damaged`` were found but invalid.

    ``stored`` blocks of ``stored_bytes`` bytes, ``refused`` ones, and those ``evicted`` to make room.
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
        """A consistent copy of the counters, by name."""
        with self._lock:
            return {f.name: getattr(self, f.name) for f in fields(self) if f.init}


class BlockCache:
    """A cache of at most ``bytes_`` bytes below ``folder``, shared by the processes of a node with the same folder.

    The blocks are in ``folder/stoker-blocks``, which only this user can read. Safe to use from many threads. Blocks
    that the processes now using the cache have stored or read are kept until the last of them exits; when these leave
    no room, others are not admitted (:mod:`stoker.storage.cache_folder` explains why).
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
        """Release the folder; the blocks are kept."""
        if self._folder is not None:
            self._folder.close()
            self._folder = None

    def get(self, key: str, check: Callable[[Any], None] | None = None) -> memoryview | None:
        """The block stored under ``key``, as a memoryview of unsigned bytes, or None.

        ``check(block)``, if given, validates the bytes, by raising :class:`BadBody`; otherwise the block's own
        checksum does. An invalid block is deleted.
        """
        block = self._read(key, check) if self._folder is not None else None
        if block is None:
            self.counters.add(misses=1)
        else:
            self.counters.add(hits=1, bytes=len(block))
        return block

    def put(self, key: str, data: bytes | memoryview) -> None:
        """Store ``data`` under ``key``, if there is room; visible to others whole or not at all."""
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
        except FileNotFoundError:  # the folder was deleted meanwhile
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
            if _is_valid(key, stored, block, check):
                if status.st_mtime_ns < folder.since_ns:
                    os.utime(file)
                return block
        except OSError as error:  # a disk that cannot be read counts as damaged
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
            if written != size:  # its room was reserved, so the disk is not simply full
                raise OSError(errno.EIO, f"{written} of {size} bytes were written")
            if not folder.publish(path, name, size):
                return
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
                "the block cache in %s stores no more blocks: %s; further blocks are read from the store. Use a folder "
                "on a disk with more room, or a smaller bound",
                self._path,
                reason,
            )
        self._admits = False


def _header(key: str, data: bytes | memoryview) -> bytes:
    return _HEADER.pack(_MAGIC, len(data), xxhash.xxh3_128_digest(key.encode()), xxhash.xxh3_128_digest(data))


def _is_valid(key: str, stored: bytes, block: memoryview, check: Callable[[Any], None] | None) -> bool:
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
