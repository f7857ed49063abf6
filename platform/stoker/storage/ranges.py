"""A range of an object, read until it is right: the client at hand, deadline, second request, check and retries."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import fsspec.asyn
from fsspec.asyn import AsyncFileSystem

from stoker.storage.local import read_file_range
from stoker.storage.reads import Reads
from stoker.storage.retry import BadBody, call_with_retries

if TYPE_CHECKING:
    from stoker.storage.location import Location

__all__ = ["read_range"]

_SHORTEST_TIMEOUT_S = 0.05


def read_range(
    location: Location, start: int, stop: int, check: Callable[[Any], None] | None, reads: Reads
) -> memoryview:
    """See :meth:`Location.read_range`."""
    until = time.monotonic() + location.patience_s
    counters = reads.counters

    def once() -> memoryview:
        timeout_s = max(_SHORTEST_TIMEOUT_S, min(reads.deadline_s, until - time.monotonic()))
        with reads.in_flight.slot() if reads.in_flight else nullcontext():
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
            counters.add(requests=1, bytes=len(data), request_s=time.monotonic() - began)
            return data

    return call_with_retries(
        once,
        what="read",
        url=location.url,
        patience_s=location.patience_s,
        on_retry=lambda _, pause_s: counters.add(retries=1, backoff_s=pause_s),
    )


def _request(location: Location, start: int, stop: int, timeout_s: float) -> memoryview:
    """One request by the client at hand. Raises what the client raises, TimeoutError after ``timeout_s`` seconds."""
    filesystem, path = location.filesystem, location.path
    if location.is_local:
        return memoryview(read_file_range(path, start, stop))
    if isinstance(filesystem, AsyncFileSystem) and not filesystem.asynchronous:
        data = fsspec.asyn.sync(filesystem.loop, filesystem._cat_file, path, start=start, end=stop, timeout=timeout_s)
    else:
        data = filesystem.cat_file(path, start=start, end=stop)
    return memoryview(data)
