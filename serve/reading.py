"""Read a request's body from ASGI: bounded in bytes and in time, for one request and for all of a replica together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from .answers import Problem
from .settings import Limits

__all__ = ["Bodies", "ClientGone", "Receive", "drain"]

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

_SLOWEST = 100_000
"""bytes a second: each that arrives buys this much more time"""
_SLOWEST_WHEN_FULL = 1_000_000
_START_WHEN_FULL_S = 1.0
_SMALL = 1_000_000
"""bytes of a body that may take the room that larger ones leave"""
_DRAINED_BYTES = 1_000_000
_DRAINED_S = 1.0


class ClientGone(Exception):
    """The client closed its connection before the answer was sent."""


class _Reading:
    """A body that is being read."""

    __slots__ = ("began", "received", "timeout")

    def __init__(self, began: float, timeout: asyncio.Timeout) -> None:
        self.began = began
        self.received = 0
        self.timeout = timeout


class Bodies:
    """The bodies that a replica holds; those of :meth:`read` count until they are given back.

    A few clients with large bodies do not keep out everybody else: a quarter of the room is for bodies of 1 MB or less,
    and when there is none left, bodies that come at less than 1 MB a second are given up.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._for_small = min(limits.held_bytes // 4, limits.held_bytes - limits.body_bytes)
        self._reading = set[_Reading]()
        self.held = 0
        """bytes"""

    async def read(self, headers: Mapping[bytes, bytes], receive: Receive) -> bytes:
        """The whole body, for :meth:`give_back` when it is no longer held.

        Raises:
            Problem: 408 if it arrives too slowly, 413 if it is too long, 503 if the replica holds too much already.
            ClientGone: the client went away.
        """
        limit = self._limits.body_bytes
        told = headers.get(b"content-length", b"")
        length = int(told) if told.isdigit() and len(told) < 19 else 0
        if length > limit or len(told) >= 19:
            await drain(receive, headers)
            raise _too_long(limit)
        pieces: list[bytes] = []
        received = 0
        loop = asyncio.get_running_loop()
        began = loop.time()
        ends_at = began + self._limits.read_s
        reserved = length
        self._take(length, length)
        timeout = asyncio.timeout_at(ends_at)
        reading = _Reading(began, timeout)
        self._reading.add(reading)
        try:
            async with timeout:
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        raise ClientGone
                    piece = message.get("body", b"")
                    received += len(piece)
                    reading.received = received
                    if received > limit:
                        raise _too_long(limit)
                    if received > reserved:
                        self._take(received - reserved, received)
                        reserved = received
                    pieces.append(piece)
                    if not message.get("more_body", False):
                        break
                    timeout.reschedule(ends_at + received / _SLOWEST)
        except TimeoutError:
            self.held -= reserved
            detail = f"the body did not arrive in time ({received:,} bytes came); send it faster, or a smaller one"
            raise Problem(408, "body_too_slow", detail, {"Connection": "close"}) from None
        except BaseException:
            self.held -= reserved
            raise
        finally:
            self._reading.discard(reading)
        self.held -= reserved - received
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def give_back(self, body: bytes) -> None:
        self.held -= len(body)

    def _take(self, count: int, length: int) -> None:
        """Take room for ``count`` more bytes of a body of ``length``, as far as that is known."""
        room = self._limits.held_bytes - (self._for_small if length > _SMALL else 0)
        if self.held + count > room:
            self._give_up_slow()
            detail = f"the replica holds {self.held:,} bytes of other requests; try again"
            raise Problem(503, "busy", detail, {"Retry-After": "1"})
        self.held += count

    def _give_up_slow(self) -> None:
        now = asyncio.get_running_loop().time()
        for reading in self._reading:
            late = now - reading.began > _START_WHEN_FULL_S + reading.received / _SLOWEST_WHEN_FULL
            if late and not reading.timeout.expired():
                reading.timeout.reschedule(now)


async def drain(receive: Receive, headers: Mapping[bytes, bytes]) -> None:
    """Read a short body to its end and drop it before a refusal: a client that still sends would not see the answer."""
    told = headers.get(b"content-length", b"")
    if told == b"0" or not (told or b"transfer-encoding" in headers) or b"expect" in headers:
        return  # nothing comes; who expects to be asked for a body shall not be
    if told.isdigit() and int(told[:19]) > _DRAINED_BYTES:
        return
    received, more = 0, True
    try:
        async with asyncio.timeout(_DRAINED_S):
            while more and received <= _DRAINED_BYTES:
                message = await receive()
                received += len(message.get("body", b""))
                more = message["type"] == "http.request" and message.get("more_body", False)
    except TimeoutError:
        return


def _too_long(limit: int) -> Problem:
    return Problem(413, "body_too_large", f"the body is longer than {limit:,} bytes; send smaller or fewer images")
