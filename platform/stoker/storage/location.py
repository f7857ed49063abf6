"""Read, write and publish objects at a URL, on any filesystem of fsspec.

Three guarantees that plain fsspec calls do not give:
- a read returns exactly the requested bytes or fails; a caller's check (a checksum) is part of the read, so a read of
  wrong bytes is retried;
- a write becomes visible whole or not at all, also on a local disk;
- ``create`` and ``swap`` have one winner among concurrent writers where the store has conditional writes (S3 and
  those that speak its API: RFC 9110 section 13, If-None-Match and If-Match; local files: a lock).

A location is only its URL: it can be sent to another process without secrets, which a pickled fsspec filesystem
would include.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.local import LocalFileSystem

from stoker.errors import StorageError
from stoker.storage.filesystems import filesystem_of
from stoker.storage.listing import first_objects
from stoker.storage.local import create_file, locked, write_file
from stoker.storage.ranges import read_range
from stoker.storage.reads import Reads
from stoker.storage.retry import absence, call_with_retries, status_of, writing_to

__all__ = ["Conflict", "Location", "locate", "version_of"]

Check = Callable[[Any], None]  # of bytes from read, of a memoryview of bytes from read_range


class Conflict(StorageError):
    """Another writer was first: the object already exists, or is not the expected version."""


def locate(url: str | os.PathLike[str], *, timeout_s: float = 60.0) -> Location:
    """Create the location at ``url`` (``s3://…``, ``gs://…``, ``file://…``, ``memory://…`` or a bare path).

    ``timeout_s``: seconds for which each operation there is retried before it fails. Nothing is contacted yet.

    Raises:
        StorageError: the protocol is unknown or its package is not installed.
    """
    text = os.fspath(url)
    if "://" not in text:
        text = os.path.abspath(os.path.expanduser(text))
    elif text.startswith("file://"):
        text = os.path.abspath(text.removeprefix("file://localhost").removeprefix("file://"))
    if text.endswith("://") and text != "memory://":
        raise StorageError(f"{text}: the URL names no bucket or folder; write it as {text}bucket/folder", url=text)
    location = Location(text if text == "memory://" else text.rstrip("/") or "/", timeout_s)
    location.filesystem  # noqa: B018 - an unknown protocol is refused here, not at the first read
    return location


@dataclass(frozen=True, order=True)
class Location:
    """An object or prefix at a URL. Immutable, cheap, picklable; ``location / "name"`` is a location below it."""

    url: str
    timeout_s: float = 60.0

    def __truediv__(self, name: str) -> Location:
        above = self.url if self.url.endswith("://") else f"{self.url.rstrip('/')}/"
        return replace(self, url=f"{above}{name.strip('/')}")

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """The last component of the URL."""
        return self.url.rstrip("/").rpartition("/")[2]

    @property
    def filesystem(self) -> Any:
        """The fsspec filesystem of this process for the URL's protocol."""
        protocol = self.url.partition("://")[0] if "://" in self.url else "file"
        return filesystem_of(protocol)

    @property
    def path(self) -> str:
        """The URL without its protocol, as the filesystem expects it."""
        return str(self.filesystem._strip_protocol(self.url))

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, LocalFileSystem)

    def with_timeout(self, timeout_s: float) -> Location:
        """The same location, with another timeout in seconds."""
        return replace(self, timeout_s=timeout_s)

    # -- reading ---------------------------------------------------------------------------------------------------

    def read(self, check: Check | None = None) -> bytes:
        """Read the whole object. ``check(data)`` may raise :class:`BadBody`, after which the read is retried.

        Raises:
            FileNotFoundError: the object does not exist.
            StorageError: refused, or no valid response within the timeout.
        """

        def once() -> bytes:
            data = bytes(self.filesystem.cat_file(self.path))
            if check is not None:
                check(data)
            return data

        return self._retry(once, "read")

    def read_range(
        self, start: int, stop: int, check: Check | None = None, *, reads: Reads | None = None
    ) -> memoryview:
        """Read exactly the bytes ``[start, stop)``, as a memoryview of unsigned bytes.

        ``check`` is as in :meth:`read`, called with the memoryview. ``reads`` is the policy of the requests and counts
        their results; the timeout of this location bounds all of them together.

        Raises:
            FileNotFoundError: the object does not exist.
            StorageError: refused, or no valid response within the timeout.
        """
        return read_range(self, start, stop, check, reads or Reads())

    def exists(self) -> bool:
        """Whether an object (not a prefix) exists here."""
        try:
            return self._retry(lambda: self.filesystem.info(self.path)["type"] == "file", "look at")
        except FileNotFoundError:
            return False

    def size(self) -> int:
        """The object's length in bytes.

        Raises:
            FileNotFoundError: the object does not exist.
        """
        return int(self._retry(lambda: self.filesystem.info(self.path)["size"], "look at"))

    def children(self) -> list[str]:
        """Names of the objects and prefixes directly below, sorted, hidden ones (``.name``) left out."""

        def once() -> list[str]:
            self.filesystem.invalidate_cache()
            return [str(name) for name in self.filesystem.ls(self.path, detail=False)]

        try:
            names = self._retry(once, "list")
        except (FileNotFoundError, NotADirectoryError):
            return []
        own = self.path.rstrip("/")
        found = (n.rstrip("/").rpartition("/")[2] for n in names if n.rstrip("/") != own)
        return sorted(name for name in found if not name.startswith("."))

    def walk(self) -> Iterator[tuple[str, int]]:
        """(relative path, size in bytes) of every object below, sorted, hidden ones left out.

        Raises:
            StorageError: some of it cannot be listed; never a shorter list instead.
        """

        found = self.find()
        for path in sorted(found):
            yield path, int(found[path]["size"])

    def find(self) -> dict[str, dict[str, Any]]:
        """What fsspec knows of every object below, by its relative path, hidden ones left out; none where none is.

        Raises:
            StorageError: some of it cannot be listed; never a shorter list instead.
        """

        def once() -> dict[str, dict[str, Any]]:
            self.filesystem.invalidate_cache()
            return dict(self.filesystem.find(self.path, detail=True, **_of_walks(self.filesystem)))

        try:
            found = self._retry(once, "list")
        except FileNotFoundError:
            return {}
        start = len(self.path.rstrip("/")) + 1
        return {
            path[start:]: info
            for path, info in found.items()
            if not any(part.startswith(".") for part in path[start:].split("/"))
        }

    def some(self, count: int) -> list[str]:
        """Relative paths of up to ``count`` objects below, hidden ones left out, in no particular order.

        Lists few more than that, so it tells at once whether a prefix of any size is empty.
        """

        def once() -> list[str]:
            return list(itertools.islice(first_objects(self.filesystem, self.path), count))

        try:
            return list(self._retry(once, "list"))
        except FileNotFoundError:
            return []

    # -- writing ---------------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Write ``data`` here, replacing the previous content; it becomes visible whole or not at all.

        Raises:
            StorageError: refused, no valid response within the timeout, or there is no such bucket.
        """
        with writing_to(self.url):
            if self.is_local:
                self._retry(lambda: write_file(Path(self.path), data), "write")
            else:
                self._retry(lambda: self.filesystem.pipe_file(self.path, data), "write")

    def create(self, data: bytes) -> None:
        """Write ``data`` here only if nothing exists here yet.

        Raises:
            Conflict: something else exists here. (Finding our own bytes counts as success: the response to an
                attempt that succeeded may have been lost.)
        """
        try:
            with writing_to(self.url):
                if self.is_local:
                    self._retry(lambda: create_file(Path(self.path), data), "create")
                else:
                    self._retry(lambda: self._create_remote(data), "create")
        except FileExistsError:
            if self.read() != data:
                raise Conflict(
                    f"{self.url} exists already and is never overwritten; choose another name", url=self.url
                ) from None

    def version(self) -> tuple[bytes, str] | None:
        """(content, a token for :meth:`swap`), or None if nothing exists here."""
        try:
            data = self.read()
        except FileNotFoundError:
            return None
        return data, version_of(data)

    def swap(self, data: bytes, expected: str | None) -> None:
        """Replace the content only if it still is the version ``expected`` (from :meth:`version`).

        ``expected`` None means that nothing exists here. Atomic on S3 and on local files; on other stores the check and
        the write are two requests.

        Raises:
            Conflict: another writer changed it in between.
        """
        if expected is None:
            self.create(data)
            return
        try:
            if self.is_local:
                with locked(Path(self.path)):
                    self._check_version(expected)
                    self.write(data)
            elif hasattr(self.filesystem, "call_s3"):
                self._retry(lambda: self._swap_s3(data, expected), "write")
            else:
                self._check_version(expected)
                self.write(data)
        except FileNotFoundError:  # deleted in between, with its folder or bucket too
            raise self._changed() from None

    def delete(self) -> None:
        """Delete the object, or the prefix with everything below it, if it exists."""
        with contextlib.suppress(FileNotFoundError):
            self._retry(lambda: self.filesystem.rm(self.path, recursive=True), "delete")

    # -- inside ----------------------------------------------------------------------------------------------------

    def _retry(self, action: Callable[[], Any], what: str) -> Any:
        return call_with_retries(action, what=what, url=self.url, timeout_s=self.timeout_s)

    def _check_version(self, expected: str) -> None:
        now = self.version()
        if now is None or now[1] != expected:
            raise self._changed()

    def _changed(self) -> Conflict:
        return Conflict(f"{self.url} was changed by another writer; read it again and repeat", url=self.url)

    def _create_remote(self, data: bytes) -> None:
        try:
            self.filesystem.pipe_file(self.path, data, mode="create")
        except Exception as error:
            if status_of(error) == 412:
                raise FileExistsError(self.url) from error
            raise

    def _swap_s3(self, data: bytes, expected: str) -> None:
        bucket, key, _ = self.filesystem.split_path(self.path)
        payer = self.filesystem.req_kw
        etag = self.filesystem.call_s3("head_object", Bucket=bucket, Key=key, **payer)["ETag"]
        now = self.read()
        if version_of(now) != expected:
            if now == data:
                return
            raise self._changed()
        try:
            self.filesystem.call_s3("put_object", Bucket=bucket, Key=key, Body=data, IfMatch=etag, **payer)
        except Exception as error:
            if status_of(error) == 412:
                raise self._changed() from error
            raise


def version_of(data: bytes) -> str:
    """The token of the content ``data`` for :meth:`Location.swap`."""
    return hashlib.sha256(data).hexdigest()


def _of_walks(filesystem: Any) -> dict[str, Any]:
    """Arguments of ``find`` where fsspec walks the folders itself: it would leave out those it cannot list."""
    find = getattr(type(filesystem), "_find", None) or type(filesystem).find
    return {"on_error": _unless_absent} if find in {AsyncFileSystem._find, AbstractFileSystem.find} else {}


def _unless_absent(error: BaseException) -> None:
    found = absence(error)
    if not isinstance(found, FileNotFoundError):  # a folder that is deleted meanwhile is no fault
        raise found
