"""Images from anybody are decoded in processes that may be killed: the good ones are answered, and nothing stays."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from bombs import BOMBS, animated_webp, good_image, many_scans
from conftest import environment_with
from stoker.dataset.decode import evaluation_image
from stoker.dataset.format.image_header import ImageHeader, read_header
from stoker.dataset.undecodable import UndecodableImage
from stoker.predict.contained import Decoders

GOOD = good_image()
SLOW = many_scans(100, 4000, 4000)
"""some 0.2 s of a processor"""
SIZE, RESIZE = 64, 72
MOST_MB = 1200
"""memory of template and children, proportional set size: what PyTorch takes, and the largest image here"""


def header_of(data: bytes) -> ImageHeader:
    header = read_header(data)
    assert header is not None
    return header


def pixels(data: bytes) -> np.ndarray:
    return evaluation_image(data, image_size=SIZE, resize=RESIZE).permute(1, 2, 0).numpy()


async def decoded(decoders: Decoders, *images: bytes) -> list[Any]:
    """The results; the deadline is for a test that hangs."""
    async with asyncio.timeout(120):
        return await decoders.decode(images, [header_of(data) for data in images])


def is_good(result: Any, data: bytes = GOOD) -> bool:
    return isinstance(result, np.ndarray) and np.array_equal(result, pixels(data))


def children(decoders: Decoders) -> list[psutil.Process]:
    return psutil.Process(decoders.template_pid).children()


@asynccontextmanager
async def started(**changed: Any) -> AsyncIterator[Decoders]:
    decoders = Decoders(image_size=SIZE, resize=RESIZE, **changed)
    await decoders.start()
    try:
        yield decoders
    finally:
        processes = [psutil.Process(decoders.template_pid), *children(decoders)]
        decoders.close()
        assert not psutil.wait_procs(processes, timeout=30)[1]
        await asyncio.sleep(0)


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def shared(loop: asyncio.Runner) -> Iterator[Decoders]:
    """Decoders as they are made, for tests that leave them as good as new; importing PyTorch takes seconds."""
    decoders = Decoders(image_size=SIZE, resize=RESIZE)
    loop.run(decoders.start())
    yield decoders
    decoders.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.02)


def test_pixels_are_those_of_evaluation_in_the_order_of_the_images(loop: asyncio.Runner, shared: Decoders) -> None:
    async def test(decoders: Decoders) -> None:
        before = decoders.killed
        images = [good_image(seed=n) for n in range(40)]
        images[3:3] = [
            good_image(3000, 2000),
            good_image(kind="PNG"),
            good_image(kind="WEBP"),
            good_image(20, 33, "GIF"),
            animated_webp(2, 300),
            good_image(progressive=True),
            good_image(4000, 1),
        ]
        for result, data in zip(await decoded(decoders, *images), images, strict=True):
            assert is_good(result, data)
        assert await decoded(decoders) == []
        assert decoders.killed == before

    loop.run(test(shared))


def test_each_abuse_leaves_the_good_image_beside_it_answered_and_memory_bounded(
    loop: asyncio.Runner, shared: Decoders
) -> None:
    async def test(decoders: Decoders) -> None:
        before = decoders.killed
        for name, make in BOMBS.items():
            bomb = make()
            header = read_header(bomb)
            if header is None:
                continue  # no header, so nobody decodes it
            first, bad, last = await decoded(decoders, GOOD, bomb, GOOD)
            assert is_good(first), name
            assert is_good(last), name
            if isinstance(bad, UndecodableImage):
                assert "\n" not in str(bad), name
                with pytest.raises(UndecodableImage):
                    pixels(bomb)
            else:
                assert is_good(bad, bomb), name
            tree = [psutil.Process(decoders.template_pid), *children(decoders)]
            assert sum(process.memory_full_info().pss for process in tree) < MOST_MB * 1e6, name
        assert decoders.killed == before

    loop.run(test(shared))


def test_an_image_beyond_its_deadline_is_refused_and_its_process_replaced(loop: asyncio.Runner) -> None:
    async def test() -> None:
        async with started(grace_s=0.05, pixels_a_second=10**12) as decoders:
            before = {process.pid for process in children(decoders)}
            good, slow, again = await decoded(decoders, GOOD, SLOW, GOOD)
            assert is_good(good)
            assert is_good(again)
            assert str(slow).startswith("the image takes too long to decode (more than 0.1 s); save it as")
            assert decoders.killed == 1
            assert is_good(*await decoded(decoders, GOOD))
            await until(lambda: len({process.pid for process in children(decoders)} & before) == 1)

    loop.run(test())


def test_an_image_beyond_its_memory_is_refused_and_others_are_not(loop: asyncio.Runner) -> None:
    async def test() -> None:
        async with started(most_memory_mb=60) as decoders:
            for large in (
                good_image(6000, 5000),
                good_image(6000, 5000, progressive=True),
                good_image(6000, 5000, "PNG"),
            ):
                good, refused, again = await decoded(decoders, GOOD, large, GOOD)
                assert is_good(good)
                assert is_good(again)
                assert str(refused) == "the image takes too much memory to decode (more than 60 MB); scale it down"

    loop.run(test())


def test_cheap_images_do_not_wait_for_expensive_ones(loop: asyncio.Runner, shared: Decoders) -> None:
    async def test(decoders: Decoders) -> None:
        slow = [asyncio.create_task(decoded(decoders, SLOW)) for _ in range(10)]
        await asyncio.sleep(0)
        for _ in range(5):
            assert is_good(*await decoded(decoders, GOOD))
        assert not slow[-1].done()
        assert all(is_good(*results, SLOW) for results in await asyncio.gather(*slow))

    loop.run(test(shared))


def test_calls_take_turns(loop: asyncio.Runner, shared: Decoders) -> None:
    async def test(decoders: Decoders) -> None:
        many = asyncio.create_task(decoded(decoders, *[GOOD] * 32 * 40))
        await asyncio.sleep(0)
        assert is_good(*await decoded(decoders, GOOD))
        assert not many.done()
        assert len(await many) == 32 * 40

    loop.run(test(shared))


async def _kill(decoders: Decoders, victim: Callable[[], int]) -> list[Any]:
    work = asyncio.create_task(decoded(decoders, *[GOOD] * 300, SLOW))
    await until(lambda: any(process.cpu_times().user > 0.05 for process in children(decoders)))
    os.kill(victim(), signal.SIGKILL)
    return await work


def test_a_child_that_is_killed_in_the_middle_of_work_costs_no_image(loop: asyncio.Runner, shared: Decoders) -> None:
    async def test(decoders: Decoders) -> None:
        before = decoders.killed
        busiest = lambda: max(children(decoders), key=lambda process: process.cpu_times().user).pid  # noqa: E731
        results = await _kill(decoders, busiest)
        assert all(is_good(result) for result in results[:-1])
        assert is_good(results[-1], SLOW)
        assert decoders.killed == before + 1

    loop.run(test(shared))


def test_a_template_that_is_killed_in_the_middle_of_work_costs_no_image(loop: asyncio.Runner, shared: Decoders) -> None:
    async def test(decoders: Decoders) -> None:
        old = decoders.template_pid
        orphans = children(decoders)
        results = await _kill(decoders, lambda: old)
        assert all(is_good(result) for result in results[:-1])
        assert is_good(results[-1], SLOW)
        assert decoders.template_pid != old
        assert not psutil.wait_procs(orphans, timeout=30)[1]

    loop.run(test(shared))


def test_a_cancelled_call_frees_its_process_and_harms_no_other(loop: asyncio.Runner, shared: Decoders) -> None:
    async def test(decoders: Decoders) -> None:
        before = decoders.killed
        worked = {process.pid: process.cpu_times().user for process in children(decoders)}
        call = asyncio.create_task(decoded(decoders, SLOW, *[GOOD] * 100, SLOW))
        await until(lambda: any(p.cpu_times().user > worked.get(p.pid, 0.0) + 0.05 for p in children(decoders)))
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await until(lambda: decoders.killed == before + 1)
        assert is_good(*await decoded(decoders, GOOD))
        assert is_good(*await decoded(decoders, SLOW), SLOW)
        await decoders.probe()

    loop.run(test(shared))


def test_a_child_that_answers_something_else_is_killed(loop: asyncio.Runner) -> None:
    async def test() -> None:
        async with started() as decoders:
            decoders._image_size = 63  # what the parent expects of children that it forks from now on
            await _kill_all(decoders)
            (result,) = await decoded(decoders, GOOD)
            assert "ends the program that decodes it" in str(result)
            assert decoders.killed >= 2

    loop.run(test())


async def _kill_all(decoders: Decoders) -> None:
    for process in children(decoders):
        process.kill()
    await until(lambda: not children(decoders))


def test_children_have_no_secrets_open_no_file_and_have_one_thread(loop: asyncio.Runner) -> None:
    async def test() -> None:
        with environment_with({"AWS_SECRET_ACCESS_KEY": "secret"}):
            async with started() as decoders:
                tree = [psutil.Process(decoders.template_pid), *children(decoders)]
                assert len(tree) == 3
                for process in tree:
                    assert not [name for name in process.environ() if name.startswith(("AWS_", "RAY_", "STOKER_"))]
                    assert process.num_threads() == 1
                for child in tree[1:]:
                    assert child.rlimit(psutil.RLIMIT_NOFILE) == (4, 4)
                    assert child.rlimit(psutil.RLIMIT_CORE) == child.rlimit(psutil.RLIMIT_FSIZE) == (0, 0)
                    assert "NoNewPrivs:\t1" in Path(f"/proc/{child.pid}/status").read_text()
                    assert len(os.listdir(f"/proc/{child.pid}/fd")) == 4

    loop.run(test())


PARENT = """
    import asyncio
    from bombs import many_scans
    from stoker.dataset.format.image_header import read_header
    from stoker.predict.contained import Decoders

    async def main():
        decoders = Decoders(image_size=64, resize=72)
        await decoders.start()
        print(decoders.template_pid, flush=True)
        slow = many_scans(100, 4000, 4000)
        while True:
            await decoders.decode([slow], [read_header(slow)])

    asyncio.run(main())
"""


def test_a_parent_that_is_killed_leaves_no_process() -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    arguments = [sys.executable, "-c", textwrap.dedent(PARENT)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None
        template = psutil.Process(int(parent.stdout.readline()))
        left = [template, *template.children()]
        assert len(left) == 3
        parent.kill()
    assert not psutil.wait_procs(left, timeout=30)[1]
