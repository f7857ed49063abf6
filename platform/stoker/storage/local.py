"""Local files and NFS: published whole and on the disk, created by one of many processes, read without a copy."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

__all__ = ["create_file", "locked", "publishing", "read_file_range", "write_file"]

_SUFFIX = ".new"
_NAME_BYTES = 200
"""of the hidden name, of which filesystems allow 255"""
_TEMPORARY = re.compile(r"\..*\.[0-9a-f]{12}" + re.escape(_SUFFIX), re.DOTALL)
"""what a file is called until it is published, and no other file"""
_NO_FSYNC = _NO_LOCKS = frozenset({errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK})
_ACCESS_LIST = "system.posix_acl_access"  # acl(5)
_NO_ACCESS_LIST = frozenset({errno.ENODATA, errno.ENOTSUP, errno.ENOSYS})
_LEFT_BEHIND_S = 600.0
"""a file that is being written is locked; one this old that is not was left by a writer that died"""
_swept: set[tuple[int, str]] = set()
_sweeping = threading.Lock()


@contextlib.contextmanager
def publishing(
    path: Path, *, is_new: bool = False, mode: int = 0o666, keeps_access: bool = False
) -> Iterator[BinaryIO]:
    """Open a file whose content replaces that of ``path`` at the end of the block; on an error nothing changes.

    The content is on the disk before it becomes visible, and its name when the block ends. Its permissions (``mode``),
    and those of the folders made for it, follow the umask. With ``is_new`` nothing may exist at ``path``. With
    ``keeps_access`` a file that exists keeps its owner, group, permissions and access list. What writers that died left
    beside it is removed once a process.

    Raises:
        FileExistsError: ``is_new``, and something exists.
        PermissionError: ``keeps_access``, and this user may not write a file of that owner and group.
        OSError: the file cannot be written; the error names a path.
    """
    folder = path.parent
    _make_folders(folder)
    name = os.fsdecode(os.fsencode(path.name)[:_NAME_BYTES])
    temporary = f"{folder}/.{name}.{secrets.token_hex(6)}{_SUFFIX}"
    handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        with os.fdopen(handle, "wb") as file:
            with contextlib.suppress(OSError):  # a filesystem without locks: age alone tells
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _sweep(folder, os.fstat(handle).st_mtime)
            if keeps_access:
                with contextlib.suppress(FileNotFoundError):
                    _copy_access(path, handle)
            yield file
            file.flush()
            _sync(handle)
            if is_new:
                os.link(temporary, path)
            else:
                os.replace(temporary, path)
        _sync_folder(folder)
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def write_file(path: Path, data: bytes, *, mode: int = 0o666, keeps_access: bool = False) -> None:
    """Replace the file's content atomically, creating its folders; its permissions are ``mode`` by the umask.

    With ``keeps_access`` those of a file that exists stay, as :func:`publishing` says.
    """
    with publishing(path, mode=mode, keeps_access=keeps_access) as file:
        file.write(data)


def create_file(path: Path, data: bytes) -> None:
    """Create the file with ``data``; raises FileExistsError if it exists."""
    with publishing(path, is_new=True) as file:
        file.write(data)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Exclude other processes and threads from this block, for the same ``path``.

    The lock's file, which stays, is its user's whose ``path`` is, also if root was the first to lock it.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    handle = os.open(path.with_name(f".{path.name}.lock"), flags, 0o666)
    try:
        with contextlib.suppress(OSError):
            owner, own = os.stat(path), os.fstat(handle)
            if owner.st_uid != own.st_uid and own.st_nlink == 1:
                os.fchown(handle, owner.st_uid, owner.st_gid)
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def read_file_range(path: str, start: int, stop: int) -> bytes:
    """Read the bytes ``[start, stop)`` of a file, fewer if it ends earlier."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = os.pread(file, stop - start, start)
        if len(data) == stop - start:  # a read of up to 2 GiB is complete; no copy is made
            return data
        parts = [data]
        while parts[-1] and sum(map(len, parts)) < stop - start:
            begun = sum(map(len, parts))
            parts.append(os.pread(file, stop - start - begun, start + begun))
        return b"".join(parts)
    finally:
        os.close(file)


def _copy_access(path: Path, handle: int) -> None:
    """Let exactly those read and write the file open as ``handle`` who may read and write the one at ``path``."""
    old, new = os.stat(path), os.fstat(handle)
    if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
        try:
            os.fchown(handle, old.st_uid, old.st_gid)
        except PermissionError:
            raise PermissionError(
                errno.EPERM, f"only user {old.st_uid} or root may keep its owner and group", str(path)
            ) from None
    access = _access_list(path)
    if (
        access is None and _access_list(handle) is not None
    ):  # the folder's default list, which the old file was not given
        os.removexattr(handle, _ACCESS_LIST)
    os.fchmod(handle, stat.S_IMODE(old.st_mode))
    if access is not None:
        os.setxattr(handle, _ACCESS_LIST, access)


def _access_list(file: Path | int) -> bytes | None:
    """The POSIX access list as the kernel writes it; None without one, or on a filesystem that has none."""
    if not hasattr(os, "getxattr"):  # macOS
        return None
    try:
        return os.getxattr(file, _ACCESS_LIST)
    except OSError as error:
        if error.errno in _NO_ACCESS_LIST:
            return None
        raise


def _make_folders(folder: Path) -> None:
    """Create ``folder`` and its parents, so that they are still there after a power cut."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for each in reversed(missing):
        try:
            each.mkdir(exist_ok=True)
        except FileExistsError:
            raise NotADirectoryError(errno.ENOTDIR, "a file is where a folder should be", str(each)) from None
        _sync_folder(each.parent)


def _sync_folder(folder: Path) -> None:
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:  # who may write there need not be allowed to read
        return
    try:
        _sync(handle)
    finally:
        os.close(handle)


def _sync(handle: int) -> None:
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_FSYNC:  # some network filesystems have none
            raise


def _sweep(folder: Path, now: float) -> None:
    """Remove what dead writers left in ``folder``; ``now`` is by the clock of its filesystem."""
    with _sweeping:
        if (os.getpid(), str(folder)) in _swept:
            return
        _swept.add((os.getpid(), str(folder)))
    left = []
    with contextlib.suppress(PermissionError), os.scandir(folder) as entries:
        left = [entry.path for entry in entries if _TEMPORARY.fullmatch(entry.name)]
    for path in left:
        with contextlib.suppress(OSError):
            if now - os.stat(path, follow_symlinks=False).st_mtime > _LEFT_BEHIND_S and _is_unlocked(path):
                os.unlink(path)


def _is_unlocked(path: str) -> bool:
    handle = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)  # NFS locks only what is open for writing
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in _NO_LOCKS
    finally:
        os.close(handle)
    return True
