"""What a replica holds of bodies: a few large or slow ones do not keep out the others."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import pytest

from stoker_serve.answers import Problem
from stoker_serve.reading import Bodies
from stoker_serve.settings import Limits

LARGE, SMALL = 8_000_000, 1_000_000
LIMITS = Limits(body_bytes=LARGE, held_bytes=4 * LARGE, read_s=60)


def sent(data: bytes, *, is_complete: bool = True) -> Callable[[], Awaitable[MutableMapping[str, Any]]]:
    """ASGI's ``receive`` of a client that sends ``data``, and then no more if it is not complete."""
    messages = [{"type": "http.request", "body": data, "more_body": not is_complete}]

    async def receive() -> MutableMapping[str, Any]:
        if messages:
            return messages.pop()
        await asyncio.Event().wait()
        raise AssertionError

    return receive


def told(length: int) -> dict[bytes, bytes]:
    return {b"content-length": str(length).encode()}


def test_a_quarter_of_the_room_is_left_for_small_bodies() -> None:
    async def run() -> None:
        bodies = Bodies(LIMITS)
        for _ in range(3):
            await bodies.read(told(LARGE), sent(bytes(LARGE)))
        with pytest.raises(Problem, match="the replica holds 24,000,000 bytes") as refused:
            await bodies.read(told(SMALL + 1), sent(bytes(SMALL + 1)))
        assert (refused.value.status, refused.value.headers) == (503, {"Retry-After": "1"})
        for _ in range(8):
            assert len(await bodies.read(told(SMALL), sent(bytes(SMALL)))) == SMALL
        with pytest.raises(Problem, match="the replica holds 32,000,000 bytes"):
            await bodies.read(told(1), sent(b"x"))

    asyncio.run(run())


def test_a_body_without_a_told_length_may_not_take_the_room_of_small_ones() -> None:
    async def run() -> None:
        bodies = Bodies(LIMITS)
        for _ in range(3):
            await bodies.read(told(LARGE), sent(bytes(LARGE)))
        with pytest.raises(Problem, match="the replica holds"):
            await bodies.read({}, sent(bytes(SMALL + 1)))
        assert len(await bodies.read({}, sent(bytes(SMALL)))) == SMALL

    asyncio.run(run())


def test_the_largest_body_is_read_where_no_more_than_one_is_held() -> None:
    async def run() -> None:
        bodies = Bodies(Limits(body_bytes=LARGE, held_bytes=LARGE))
        body = await bodies.read(told(LARGE), sent(bytes(LARGE)))
        bodies.give_back(body)
        assert bodies.held == 0

    asyncio.run(run())


def test_bodies_that_stopped_arriving_are_given_up_when_there_is_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stoker_serve.reading._START_WHEN_FULL_S", 0.0)

    async def run() -> None:
        bodies = Bodies(LIMITS)
        stalled = [asyncio.create_task(bodies.read(told(LARGE), sent(b"x", is_complete=False))) for _ in range(3)]
        await asyncio.sleep(0.01)
        with pytest.raises(Problem, match="the replica holds"):
            await bodies.read(told(LARGE), sent(bytes(LARGE)))
        ended = await asyncio.wait_for(asyncio.gather(*stalled, return_exceptions=True), 30)
        assert [error.status for error in ended if isinstance(error, Problem)] == [408, 408, 408]
        assert bodies.held == 0
        assert len(await bodies.read(told(LARGE), sent(bytes(LARGE)))) == LARGE

    asyncio.run(run())


def test_a_body_that_arrives_slowly_is_not_given_up_while_there_is_room() -> None:
    async def run() -> None:
        bodies = Bodies(LIMITS)
        slow = asyncio.create_task(bodies.read(told(LARGE), sent(b"x", is_complete=False)))
        await asyncio.sleep(0.01)
        await bodies.read(told(LARGE), sent(bytes(LARGE)))
        await asyncio.sleep(0.01)
        assert not slow.done()
        slow.cancel()

    asyncio.run(run())
