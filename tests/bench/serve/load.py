"""Requests at a fixed rate, or on a fixed number of connections, told apart by their status.

python -m bench.serve.load JSON, with url, body, media_type, key, seconds, and rate (requests/s, however many are open:
those that are late count from when they were due) or connections. Prints a line of JSON: for each status the count,
requests/s, and the p50 and p99 of its latency in ms.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

__all__ = ["summary"]

_MOST_CONNECTIONS = 1500
_PATIENCE_S = 10.0
_LOST = 0
"""the status of what was never answered"""


class _Connection(asyncio.Protocol):
    """A kept-alive connection that has one request in flight at most."""

    def __init__(self, run: _Run) -> None:
        self._run = run
        self._received = bytearray()
        self._due: float | None = None
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is of a class of its own

    def send(self, due: float) -> None:
        assert self.transport is not None
        self._due = due
        self.transport.write(self._run.request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, rest = self._received.partition(b"\r\n\r\n")
        if not found or self._due is None:
            return
        headers = head.lower()
        at = headers.index(b"content-length:") + 15
        if len(rest) < int(headers[at : headers.find(b"\r", at) if b"\r" in headers[at:] else None]):
            return
        due, self._due = self._due, None
        self._received.clear()
        if b"connection: close" not in headers:
            self._run.free(self)
        self._run.answered(int(head[9:12]), due)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._due is not None:
            self._run.answered(_LOST, self._due)
        self._run.lost(self)


class _Run:
    def __init__(self, given: dict[str, Any]) -> None:
        url = urlsplit(given["url"])
        body = Path(given["body"]).read_bytes()
        self._address = url.hostname, url.port
        key = f"Authorization: Bearer {given['key']}\r\n" if given["key"] else ""
        head = (
            f"POST {url.path} HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Type: {given['media_type']}\r\n"
            f"{key}Content-Length: {len(body)}\r\n\r\n"
        )
        self.request = head.encode() + body
        self.latencies: dict[int, list[float]] = {}
        self._idle: deque[_Connection] = deque()
        self._waiting: deque[float] = deque()
        self._open = 0
        self._in_flight = 0
        self._opening: set[asyncio.Task[None]] = set()
        self._connections: int | None = given.get("connections")
        self._is_over = False

    def answered(self, status: int, due: float) -> None:
        self._in_flight -= 1
        self.latencies.setdefault(status, []).append(time.perf_counter() - due)
        if self._connections and not self._is_over:
            self.ask(time.perf_counter())

    def free(self, connection: _Connection) -> None:
        if self._waiting:
            connection.send(self._waiting.popleft())
        else:
            self._idle.append(connection)

    def lost(self, connection: _Connection) -> None:
        self._open -= 1
        if connection in self._idle:
            self._idle.remove(connection)

    def ask(self, due: float) -> None:
        self._in_flight += 1
        if self._idle:
            self._idle.pop().send(due)
            return
        self._waiting.append(due)
        if self._open < _MOST_CONNECTIONS:
            self._open += 1
            task = asyncio.get_running_loop().create_task(self._connect())
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(lambda: _Connection(self), *self._address)
        except OSError:
            self._open -= 1
            if self._waiting:
                self.answered(_LOST, self._waiting.popleft())
            return
        self.free(connection)

    async def at_rate(self, rate: float, seconds: float) -> None:
        began, number = time.perf_counter(), 0
        while (now := time.perf_counter() - began) < seconds:
            while number < now * rate:
                self.ask(began + number / rate)
                number += 1
            await asyncio.sleep(0.001)
        await self._rest()

    async def on_connections(self, count: int, seconds: float) -> None:
        for _ in range(count):
            self.ask(time.perf_counter())
        await asyncio.sleep(seconds)
        self._is_over = True
        await self._rest()

    async def _rest(self) -> None:
        until = time.perf_counter() + _PATIENCE_S
        while self._in_flight and time.perf_counter() < until:
            await asyncio.sleep(0.01)
        if self._in_flight:
            self.latencies.setdefault(_LOST, []).extend([_PATIENCE_S] * self._in_flight)


def summary(latencies: dict[int, list[float]], seconds: float) -> dict[str, dict[str, float]]:
    """For each status: count, requests/s, p50 and p99 in ms, of latencies in seconds."""
    found = {}
    for status, values in sorted(latencies.items()):
        cuts = statistics.quantiles(values, n=100, method="inclusive") if len(values) > 1 else values * 99
        found[str(status)] = {
            "count": len(values),
            "requests_per_s": len(values) / seconds,
            "p50_ms": 1000 * statistics.median(values),
            "p99_ms": 1000 * cuts[98],
        }
    return found


def _main(given: dict[str, Any]) -> None:
    run = _Run(given)
    seconds = float(given["seconds"])
    if "rate" in given:
        asking = run.at_rate(float(given["rate"]), seconds)
    else:
        asking = run.on_connections(int(given["connections"]), seconds)
    try:
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(asking)
    except ImportError:
        asyncio.run(asking)
    print(json.dumps(summary(run.latencies, seconds)))


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
