"""Clients that keep asking over kept-alive connections, never ask twice, and count what came back."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

__all__ = ["Seen", "traffic"]

_ANSWER_S = 60.0


@dataclass
class Seen:
    """What the clients saw: ``answers`` by HTTP status or by the error of the connection, and the slowest answer."""

    answers: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    gap_s: float = 0.0
    """the longest time in which nobody got a 200"""
    examples: list[str] = field(default_factory=list)

    @property
    def failed(self) -> int:
        return sum(count for answer, count in self.answers.items() if answer != "200")


@contextmanager
def traffic(
    url: str, key: str, image: bytes, *, connections: int = 8, pause_s: float = 0.0, retries: int = 0
) -> Iterator[Seen]:
    """Ask ``url`` about ``image`` by ``connections`` clients inside the block; complete after it.

    ``retries``: how often a client asks again, 0.2 s later, before what it got counts as failed.
    """
    seen, ends = Seen(), threading.Event()

    async def running() -> None:
        clients = (_client(url, key, image, seen, ends, pause_s, retries) for _ in range(connections))
        watcher = asyncio.create_task(_watch(seen))
        await asyncio.gather(*clients)
        watcher.cancel()

    thread = threading.Thread(target=lambda: asyncio.run(running()))
    thread.start()
    try:
        yield seen
    finally:
        ends.set()
        thread.join()


async def _watch(seen: Seen) -> None:
    count, since = 0, time.monotonic()
    while True:
        if seen.answers["200"] != count:
            count, since = seen.answers["200"], time.monotonic()
        seen.gap_s = max(seen.gap_s, time.monotonic() - since)
        await asyncio.sleep(0.02)


async def _client(
    url: str, key: str, image: bytes, seen: Seen, ends: threading.Event, pause_s: float, retries: int
) -> None:
    place = urlsplit(url)
    head = (
        f"POST {place.path} HTTP/1.1\r\nHost: {place.netloc}\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: image/jpeg\r\nContent-Length: {len(image)}\r\n\r\n"
    )
    connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
    while not ends.is_set():
        began = time.monotonic()
        for left in range(retries, -1, -1):
            try:
                async with asyncio.timeout(_ANSWER_S):
                    if connection is None:
                        connection = await asyncio.open_connection(place.hostname, place.port)
                    connection[1].write(head.encode() + image)
                    answer, body, is_kept = await _answer(connection[0])
            except (OSError, EOFError, TimeoutError) as error:
                answer, body, is_kept = type(error).__name__, b"", False
            if not is_kept and connection is not None:
                connection[1].close()
                connection = None
            if answer == "200" or not left:
                break
            await asyncio.sleep(0.2)
        seen.answers[answer] += 1
        seen.slowest_s = max(seen.slowest_s, time.monotonic() - began)
        if answer == "200":
            seen.models[body.partition(b'"model": "')[2].partition(b'"')[0].decode()] += 1
        elif len(seen.examples) < 10:
            seen.examples.append(f"{answer} {body[:300]!r}")
        await asyncio.sleep(pause_s)
    if connection is not None:
        connection[1].close()


async def _answer(reader: asyncio.StreamReader) -> tuple[str, bytes, bool]:
    """(status, body, whether the connection stays open)."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    status = head.split(" ", 2)[1]
    length = int(head.partition("content-length:")[2].split("\r\n", 1)[0])
    return status, await reader.readexactly(length), "connection: close" not in head
