"""Decoders in trouble: what fails is said, nobody hangs or pays for another, and they go on when it is over."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import numpy as np
import psutil
import pytest

from bombs import good_image, many_scans
from stoker.dataset.format.image_header import ImageHeader, read_header
from stoker.predict.contained import Decoders
from stoker.predict.contained import decoders as module
from stoker.predict.contained.template import DecodersGone

GOOD = good_image()
SLOW = many_scans(100, 4000, 4000)
"""some 0.2 s of a processor, in the lane of the expensive ones"""


def header_of(data: bytes) -> ImageHeader:
    header = read_header(data)
    assert header is not None
    return header


async def decoded(decoders: Decoders, *images: bytes) -> list[Any]:
    async with asyncio.timeout(120):
        return await decoders.decode(images, [header_of(data) for data in images])


async def decodes(decoders: Decoders, *images: bytes) -> bool:
    return all(isinstance(result, np.ndarray) for result in await decoded(decoders, *images))


def child_of(decoders: Decoders, *, is_large: bool) -> psutil.Process:
    children = psutil.Process(decoders.template_pid).children()
    return max(children, key=lambda process: process.nice() if is_large else -process.nice())


async def kill(process: psutil.Process) -> None:
    process.kill()
    with suppress(psutil.NoSuchProcess):
        async with asyncio.timeout(60):
            while process.status() != psutil.STATUS_ZOMBIE:
                await asyncio.sleep(0.02)


async def kill_template(decoders: Decoders) -> None:
    template = psutil.Process(decoders.template_pid)
    children = template.children()
    for process in (template, *children):
        await kill(process)


def in_decoders(test: Callable[[Decoders], Coroutine[Any, Any, None]], **changed: Any) -> None:
    async def main() -> None:
        async with started(**changed) as decoders:
            await test(decoders)

    asyncio.run(main())


@asynccontextmanager
async def started(**changed: Any) -> AsyncIterator[Decoders]:
    decoders = Decoders(image_size=64, resize=72, **changed)
    try:
        await decoders.start()
        yield decoders
    finally:
        decoders.close()


@contextmanager
def no_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_an_image_is_not_blamed_for_the_one_before_that_answered_late_while_the_event_loop_was_busy() -> None:
    async def test(decoders: Decoders) -> None:
        child = child_of(decoders, is_large=True)
        call = asyncio.create_task(decoded(decoders, SLOW))
        for _ in range(20):
            await asyncio.sleep(0)  # until it is sent
        until = time.monotonic() + 60
        while child.cpu_times().user < 0.1 and time.monotonic() < until:
            time.sleep(0.01)
        while child.status() != psutil.STATUS_SLEEPING and time.monotonic() < until:
            time.sleep(0.1)  # busy until the child has answered and waits
        (slow,) = await call
        assert isinstance(slow, np.ndarray)
        decoders._grace_s = 60.0
        assert await decodes(decoders, SLOW)
        assert decoders.killed == 1

    in_decoders(test, grace_s=0.15, pixels_a_second=10**12)


def test_without_descriptors_the_reason_is_said_and_with_them_decoding_goes_on() -> None:
    async def test(decoders: Decoders) -> None:
        await kill(child_of(decoders, is_large=False))
        with no_descriptors():
            for _ in range(2):
                with pytest.raises(DecodersGone, match="cannot be started: Too many open files; look at"):
                    await decoded(decoders, GOOD)
        assert await decodes(decoders, GOOD)
        await kill_template(decoders)
        with no_descriptors(), pytest.raises(DecodersGone, match="cannot be started: Too many open files; look at"):
            await decoded(decoders, GOOD)
        assert await decodes(decoders, GOOD, SLOW)

    in_decoders(test)


def test_an_error_that_nobody_expects_fails_one_call_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    async def test(decoders: Decoders) -> None:
        wrong: Any = "a text in place of bytes"
        for _ in range(2):
            async with asyncio.timeout(60):
                with pytest.raises(DecodersGone, match="decoding failed: TypeError: "):
                    await decoders.decode([wrong], [header_of(GOOD)])
        assert len([record for record in caplog.records if "decoding failed" in record.message]) == 1
        assert await decodes(decoders, GOOD)

    in_decoders(test)


def test_after_close_every_call_is_refused_at_once_those_that_wait_too() -> None:
    async def test(decoders: Decoders) -> None:
        calls = [asyncio.create_task(decoded(decoders, *images)) for images in ([SLOW] * 3, [GOOD] * 100, [SLOW])]
        probe = asyncio.create_task(decoders.probe())
        await asyncio.sleep(0)
        decoders.close()
        for call in (*calls, probe, decoded(decoders, GOOD), decoders.probe(), decoders.start()):
            async with asyncio.timeout(60):
                with pytest.raises(DecodersGone, match="the decoders were closed"):
                    await call
        assert decoders.template_pid is None

    in_decoders(test)


def test_a_child_whose_template_is_given_up_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_TRIES", 0)

    async def test(decoders: Decoders) -> None:
        await kill_template(decoders)
        with pytest.raises(DecodersGone, match="ended again and again"):
            await decoded(decoders, GOOD)
        assert await decodes(decoders, GOOD)

    in_decoders(test)


def test_an_image_is_not_charged_with_the_end_of_a_template_that_another_lane_has_replaced() -> None:
    async def test(decoders: Decoders) -> None:
        put, deaths = decoders._small.put, []

        def recording(group: Any, *, is_first: bool = False) -> None:
            deaths.append(group.deaths)
            put(group, is_first=is_first)

        decoders._small.put = recording  # type: ignore[method-assign]
        await kill_template(decoders)
        assert await decodes(decoders, SLOW)
        assert await decodes(decoders, GOOD)
        assert deaths == [0, 0]

    in_decoders(test)


def test_a_probe_passes_while_a_lane_decodes_what_may_take_long_and_not_if_it_does_not_decode_at_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test(decoders: Decoders) -> None:
        child = child_of(decoders, is_large=True)
        child.suspend()  # as on a machine that gives it no processor
        decoders._grace_s = 60.0
        call = asyncio.create_task(decoded(decoders, SLOW))
        await asyncio.sleep(0)
        decoders._grace_s = 1.0
        async with asyncio.timeout(100):
            await decoders.probe()
        assert not call.done()
        assert not decoders._large.groups
        child.resume()
        (slow,) = await call
        assert isinstance(slow, np.ndarray)
        child.suspend()
        with pytest.raises(DecodersGone, match="do not decode one that is valid: the image takes too long"):
            await decoders.probe()
        monkeypatch.setattr(module, "_PROBE_S", 3.0)
        template = psutil.Process(decoders.template_pid)
        await kill(child_of(decoders, is_large=False))
        template.suspend()
        with pytest.raises(DecodersGone, match="do not answer within 3 s"):
            await decoders.probe()

    in_decoders(test)
