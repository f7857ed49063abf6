"""Read a range of an object: client, deadline, hedging, check and retries."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Protocol

import fsspec.asyn
from fsspec.asyn import AsyncFileSystem

from stoker.storage.filesystems import is_s3
from stoker.storage.local import read_file_range
from stoker.storage.obstore_client import obstore_client
from stoker.storage.reads import Reads
from stoker.storage.retry import BadBody, StoreAnswer, call_with_retries, is_final

__all__ = ["read_range"]

_SHORTEST_TIMEOUT_S = 0.05
# responses to a client that is configured wrongly for the store (region, signature): s3fs may know better
_MISCONFIGURED = frozenset({301, 307, 400})


class Place(Protocol):
    """The attributes of a :class:`stoker.storage.Location` that a read needs."""

    @property
    def url(self) -> str: ...
    @property
    def timeout_s(self) -> float: ...
    @property
    def path(self) -> str: ...
    @property
    def filesystem(self) -> Any: ...
    @property
    def is_local(self) -> bool: ...


def read_range(location: Place, start: int, stop: int, check: Callable[[Any], None] | None, reads: Reads) -> memoryview:
    """See :meth:`Location.read_range`."""
    until = time.monotonic() + location.timeout_s
    counters, hedging = reads.counters, reads.hedging

    def request(timeout_s: float) -> memoryview:
        began = time.monotonic()
        try:
            data = _request(location, start, stop, timeout_s)
            if len(data) != stop - start:
                raise BadBody(f"asked for bytes {start} to {stop}, got {len(data)} of them")
            if check is not None:
                check(data)
        except BaseException as error:
            counters.add(requests=1, request_s=time.monotonic() - began)
            counters.failed(error)
            raise
        took_s = time.monotonic() - began
        counters.add(requests=1, bytes=len(data), request_s=took_s)
        if hedging is not None:
            hedging.observe(len(data), took_s)
        return data

    def once() -> memoryview:
        with reads.in_flight.slot() if reads.in_flight else nullcontext():
            timeout_s = _timeout_s(reads.deadline_s, until - time.monotonic())
            if hedging is None:
                return request(timeout_s)
            return hedging.run(lambda: request(timeout_s), stop - start, counters.hedged)

    return call_with_retries(
        once,
        what="read",
        url=location.url,
        timeout_s=location.timeout_s,
        on_retry=lambda _, pause_s: counters.add(retries=1, backoff_s=pause_s),
    )


def _timeout_s(deadline_s: float, left_s: float) -> float:
    """The deadline, or the rest of the timeout rounded down to one of few steps, as obstore keeps a client for each."""
    if left_s >= deadline_s:
        return deadline_s
    return 2 ** (math.floor(4 * math.log2(max(_SHORTEST_TIMEOUT_S, left_s))) / 4)


def _request(location: Place, start: int, stop: int, timeout_s: float) -> memoryview:
    """Send one request. Raises what the client raises, TimeoutError after ``timeout_s`` seconds."""
    if is_s3(location.url):
        bucket, _, key = location.url.partition("://")[2].partition("/")
        client = obstore_client(bucket, key) if key and stop > start else None
        if client is not None:
            try:
                return client.read_range(key, start, stop, timeout_s)
            except StoreAnswer as error:
                if error.status not in _MISCONFIGURED or not is_final(error) or not client.may_fall_back:
                    raise
                client.fall_back(str(error))
    elif location.is_local:
        return memoryview(read_file_range(location.path, start, stop))
    filesystem, path = location.filesystem, location.path
    if isinstance(filesystem, AsyncFileSystem) and not filesystem.asynchronous:
        data = fsspec.asyn.sync(filesystem.loop, filesystem._cat_file, path, start=start, end=stop, timeout=timeout_s)
    else:
        data = filesystem.cat_file(path, start=start, end=stop)
    return memoryview(data)
