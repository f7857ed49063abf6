"""Read ranges from S3 by obstore: the Rust client ``object_store``, with about a third of s3fs's CPU time.

It is used for ranges only, next to s3fs, whose client supplies its endpoint and credentials: the AWS environment,
profiles and roles are read once, so that both see the same. Its own retries are off; ours act and count. Its errors
are translated to those that the retries understand.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import threading
from collections import OrderedDict
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import fsspec.asyn

from stoker.errors import StorageError
from stoker.storage.filesystems import environment_of, filesystem_of
from stoker.storage.retry import StoreAnswer

__all__ = ["ObstoreClient", "obstore_client"]

logger = logging.getLogger(__name__)

_CHOICES = ("s3fs", "obstore")
# s3fs's session, which renews those of a role in time, is asked again every 5 minutes: obstore asks 5 minutes before
# the expiry that it is given, and, if that is nearer, ten times a second.
_CREDENTIALS_LIVE = timedelta(minutes=10)
_MOST_STORES = 8  # one for each timeout: it is a property of obstore's store, not of a request
_STATUS = re.compile(r"non-2xx status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w{1,64})</Code>")
# Keys that object_store would write otherwise than S3 reads them.
_UNUSUAL_KEY = re.compile(r"(^|/)(\.{1,2})?(/|$)")
_first_user: int | None = None
_making = threading.Lock()


def obstore_client(bucket: str, key: str) -> ObstoreClient | None:
    """The client for ranges of ``key`` in ``bucket``, or None to use s3fs.

    ``STOKER_S3_CLIENT`` (``s3fs`` or ``obstore``) selects the client; otherwise obstore is used where it is installed
    and supports what s3fs is configured with.

    Raises:
        StorageError: the variable names an unknown client, or one that cannot be used here.
    """
    choice = os.environ.get("STOKER_S3_CLIENT", "")
    if choice == "s3fs":
        return None
    if choice not in {"", *_CHOICES}:
        raise StorageError(f"STOKER_S3_CLIENT is {choice!r}; set it to {' or '.join(_CHOICES)}, or unset it")
    with _making:  # many threads ask at once when a stream starts; one client holds all connections
        client = _client(bucket, os.getpid(), environment_of("s3"))
    reason = client.reason
    if _UNUSUAL_KEY.search(key):
        reason = reason or f"it cannot read the key {key!r} with its empty or dotted part"
    if reason and choice == "obstore":
        raise StorageError(f"STOKER_S3_CLIENT is obstore, but {reason}; unset it to use s3fs")
    return None if reason else client


class ObstoreClient:
    """Range reads of one bucket under one environment. Safe to use from many threads."""

    def __init__(self, bucket: str) -> None:
        self._bucket = bucket
        self._lock = threading.Lock()
        self._stores: OrderedDict[float, Any] = OrderedDict()
        self._credentials: Any = None
        self._config: dict[str, Any] = {}
        self._allows_http = False
        self.reason = self._prepare()

    def __repr__(self) -> str:
        return f"ObstoreClient({self._bucket!r})"

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a client belongs to its process; send the Location instead")

    @property
    def may_fall_back(self) -> bool:
        """Whether s3fs may be used instead: not where the user selected this client."""
        return os.environ.get("STOKER_S3_CLIENT", "") != "obstore"

    def fall_back(self, reason: str) -> None:
        """Read this bucket by s3fs from now on, because of ``reason``."""
        if not self.reason:
            logger.warning("falling back to s3fs for s3://%s: %s", self._bucket, reason)
        self.reason = reason

    def read_range(self, key: str, start: int, stop: int, timeout_s: float) -> memoryview:
        """One request for the bytes ``[start, stop)``; the memory is obstore's own, not copied.

        Raises:
            FileNotFoundError, PermissionError, TimeoutError, StoreAnswer, ConnectionError: by the store's response.
        """
        import obstore
        from obstore.exceptions import BaseError

        try:
            return memoryview(obstore.get_range(self._store(timeout_s), key, start=start, end=stop))
        except BaseError as error:
            raise _translated(error) from None
        except FileNotFoundError as error:
            raise FileNotFoundError(_first_line(error)) from None

    def _prepare(self) -> str:
        """Configure from s3fs's client; returns the reason why this is not possible, or an empty string."""
        global _first_user  # noqa: PLW0603 - it is about the process, as tokio's threads are
        try:
            import obstore  # noqa: F401
        except ImportError:
            return "obstore is not installed (pip install obstore)"
        if _first_user not in {None, os.getpid()}:
            return "this process was forked from one that uses obstore, whose threads a fork does not have"
        filesystem = filesystem_of("s3")
        client = filesystem.s3
        self._credentials = fsspec.asyn.sync(filesystem.loop, filesystem.session.get_credentials)
        if self._credentials is None:
            return "no credentials were found"
        # a signed URL shows botocore's endpoint and addressing style for this bucket
        url = fsspec.asyn.sync(
            filesystem.loop, client.generate_presigned_url, "get_object", {"Bucket": self._bucket, "Key": "key"}
        )
        parts = urlsplit(url)
        self._allows_http = parts.scheme == "http"
        self._config = {
            "endpoint": f"{parts.scheme}://{parts.netloc}",
            "region": client.meta.region_name,
            "virtual_hosted_style_request": parts.path == "/key",
            "skip_signature": False,
            "request_payer": bool(filesystem.req_kw),
        }
        if parts.path not in {"/key", f"/{self._bucket}/key"}:
            return f"the store's address {parts.scheme}://{parts.netloc} has a path"
        if not self._allows_http and os.environ.get("AWS_CA_BUNDLE"):
            return "AWS_CA_BUNDLE is set, which obstore does not read"
        _first_user = os.getpid()
        return ""

    def _store(self, timeout_s: float) -> Any:
        from obstore.store import S3Store

        with self._lock:
            if timeout_s in self._stores:
                self._stores.move_to_end(timeout_s)
                return self._stores[timeout_s]
            store = self._stores[timeout_s] = S3Store(
                self._bucket,
                config=self._config,
                client_options={
                    "allow_http": self._allows_http,
                    "connect_timeout": timedelta(seconds=min(5.0, timeout_s)),
                    "timeout": timedelta(seconds=timeout_s),
                },
                retry_config={"max_retries": 0},
                credential_provider=self._provide_credentials,
            )
            while len(self._stores) > _MOST_STORES:
                self._stores.popitem(last=False)
            return store

    def _provide_credentials(self) -> dict[str, Any]:
        filesystem = filesystem_of("s3")
        frozen = fsspec.asyn.sync(filesystem.loop, self._credentials.get_frozen_credentials)
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token or None,
            "expires_at": datetime.now(UTC) + _CREDENTIALS_LIVE,
        }


@functools.lru_cache(maxsize=32)
def _client(bucket: str, process: int, environment: tuple[tuple[bytes, bytes], ...]) -> ObstoreClient:
    return ObstoreClient(bucket)


def _translated(error: Exception) -> Exception:
    """Translate obstore's error to one of Python's; only its text has the details."""
    text = str(error)
    line = _first_line(error)
    status = _STATUS.search(text)
    if "Received redirect without LOCATION" in text:
        return StoreAnswer(line, 301)
    if status is not None:
        code = _CODE.search(text)
        number = int(status[1])
        if number in {401, 403}:
            return PermissionError(line)
        return StoreAnswer(line, number, code[1] if code else "")
    if "TimedOut" in text or "kind: Timeout" in text:
        return TimeoutError(line)
    return ConnectionError(line)


def _first_line(error: Exception) -> str:
    """The message without the trace that obstore appends."""
    return " ".join(str(error).partition("\n\nDebug source:")[0].split())
