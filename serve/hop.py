"""Pass a request on to a model's replica by an actor call: where Serve's routes cannot tell where it belongs.

That is ``NAME@REF`` behind Serve's own proxy. It costs half of the rate.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, NamedTuple

__all__ = ["Forwarded", "call_app"]


class Forwarded(NamedTuple):
    """A request that was read whole."""

    method: str
    path: str
    query: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes


async def call_app(
    app: Callable[..., Awaitable[None]], request: Forwarded
) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """What the ASGI application ``app`` answers: (status, headers, body)."""
    import asyncio

    messages = [{"type": "http.request", "body": request.body, "more_body": False}]
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> MutableMapping[str, Any]:
        if messages:
            return messages.pop()
        await asyncio.Event().wait()  # its client is watched where the request came in
        raise AssertionError

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": request.method,
        "path": request.path,
        "query_string": request.query,
        "headers": request.headers,
    }
    await app(scope, receive, send)
    return sent[0]["status"], sent[0]["headers"], b"".join(message["body"] for message in sent[1:])
