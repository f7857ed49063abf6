"""Batches of concurrent requests: who is answered, who is refused, and what is never computed.

The decoders and the model are held back here by hand; the real ones are in test_protocol and test_contained.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stoker.dataset.format.image_header import ImageHeader
from stoker_serve.answers import Problem
from stoker_serve.pipeline import Answered, Pipeline
from stoker_serve.settings import Batching, Limits

HEADER = ImageHeader("jpg", 8, 8)
EXPENSIVE = ImageHeader("jpg", 8000, 8000)
BAD = b"bad"


class Undecodable(Exception):
    pass


class ByHand:
    """Decodes an image to its first byte, at once; ``gate`` closed keeps the expensive ones."""

    workers = 1

    def __init__(self) -> None:
        self.groups: list[list[bytes]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    def is_cheap(self, header: ImageHeader, length: int) -> bool:
        return header is not EXPENSIVE

    async def decode(
        self, images: Sequence[bytes], headers: Sequence[ImageHeader]
    ) -> Sequence[NDArray[np.uint8] | Exception]:
        self.groups.append(list(images))
        await asyncio.sleep(0)
        if not self.is_cheap(headers[0], 0):
            await self.gate.wait()
        return [Undecodable("it is bad") if data == BAD else np.frombuffer(data[:1], np.uint8) for data in images]


class Model:
    """Answers an image with its own byte; ``gate`` closed holds a forward pass."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.batches: list[list[int]] = []

    def __call__(self, pixels: list[Any], top: int) -> list[tuple[list[int], list[float]]]:
        self.batches.append([int(image[0]) for image in pixels])
        assert self.gate.wait(60)
        if any(image[0] == ord("!") for image in pixels):
            raise RuntimeError("the model fails")
        return [([int(image[0])] * top, [0.5] * top) for image in pixels]


async def until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not happened():
            await asyncio.sleep(0.001)


def numbers(answered: Answered) -> list[int]:
    return [row[0][0] for row in answered.rows]


def run(test: Callable[[Pipeline, ByHand, Model], Awaitable[None]], *, batch: int = 4, **limits: Any) -> None:
    async def running() -> None:
        decoders, model = ByHand(), Model()
        given = Limits.model_validate({"queue_s": 20, **limits})
        pipeline = Pipeline(model, decoders, Batching(images=batch), given, undecodable=Undecodable)
        try:
            await test(pipeline, decoders, model)
        finally:
            model.gate.set()
            pipeline.close()

    asyncio.run(running())


def ask(pipeline: Pipeline, *images: bytes, header: ImageHeader = HEADER, top: int = 1) -> asyncio.Task[Answered]:
    return asyncio.create_task(pipeline.predict(images, [header] * len(images), top))


def test_a_lone_request_is_computed_at_once_and_requests_that_came_meanwhile_together() -> None:
    async def test(pipeline: Pipeline, decoders: ByHand, model: Model) -> None:
        model.gate.clear()
        first = ask(pipeline, b"a")
        await until(lambda: model.batches == [[ord("a")]])
        others = [ask(pipeline, b"b"), ask(pipeline, b"cc", b"d", top=2)]
        await until(lambda: sum(map(len, decoders.groups)) == 4)
        await asyncio.sleep(0.01)
        model.gate.set()
        assert numbers(await first) == [ord("a")]
        assert [numbers(await other) for other in others] == [[ord("b")], [ord("c"), ord("d")]]
        assert model.batches == [[ord("a")], [ord("b"), ord("c"), ord("d")]]
        assert [len(row[0]) for row in (await others[1]).rows] == [2, 2]
        assert [len(row[0]) for row in (await others[0]).rows] == [1]

    run(test)


def test_a_batch_never_holds_more_images_than_its_limit_also_if_one_request_brings_many() -> None:
    async def test(pipeline: Pipeline, decoders: ByHand, model: Model) -> None:
        answered = await ask(pipeline, *(bytes([n]) for n in range(11)))
        assert numbers(answered) == list(range(11))
        assert max(map(len, model.batches)) == 4
        assert sum(map(len, model.batches)) == 11

    run(test)


def test_a_request_that_is_cancelled_inside_a_batch_leaves_the_others_answered() -> None:
    async def test(pipeline: Pipeline, decoders: ByHand, model: Model) -> None:
        model.gate.clear()
        first, second = ask(pipeline, b"a"), ask(pipeline, b"b")
        await until(lambda: len(model.batches) == 1)
        waiting = [ask(pipeline, b"c"), ask(pipeline, b"d")]
        await asyncio.sleep(0.01)
        for task in (first, waiting[0]):
            task.cancel()
        await asyncio.sleep(0)
        model.gate.set()
        assert numbers(await second) == [ord("b")]
        assert numbers(await waiting[1]) == [ord("d")]
        assert ord("c") not in [number for batch in model.batches for number in batch]
        assert pipeline.images == 0

    run(test)


def test_an_image_that_cannot_be_decoded_fails_its_request_alone_and_is_named_by_its_place() -> None:
    async def test(pipeline: Pipeline, decoders: ByHand, model: Model) -> None:
        tasks = [ask(pipeline, b"a"), ask(pipeline, b"b", BAD), ask(pipeline, BAD)]
        assert numbers(await tasks[0]) == [ord("a")]
        for task, detail in zip(tasks[1:], ("image 2 of 2: it is bad", "it is bad"), strict=True):
            with pytest.raises(Problem) as caught:
                await task
            assert (caught.value.status, caught.value.detail) == (422, detail)
        assert pipeline.images == 0

    run(test)


def test_a_forward_pass_that_fails_fails_its_batch_and_the_next_one_is_computed() -> None:
    async def test(pipeline: Pipeline, decoders: ByHand, model: Model) -> None:
        with pytest.raises(RuntimeError, match="the model fails"):
            await ask(pipeline, b"!")
        assert numbers(await ask(pipeline, b"a")) == [ord("a")]

    run(test)


def test_a_request_past_its_time_is_given_up_and_never_computed() -> None:
    async def test(pipeline: Pipeline, decoders: ByHand, model: Model) -> None:
        model.gate.clear()
        first = ask(pipeline, b"a")
        await until(lambda: len(model.batches) == 1)
        late = ask(pipeline, b"b")
        for task in (first, late):
            with pytest.raises(Problem) as caught:
                await task
            assert (caught.value.status, caught.value.code) == (504, "too_late")
        model.gate.set()
        assert numbers(await ask(pipeline, b"c")) == [ord("c")]
        assert model.batches == [[ord("a")], [ord("c")]]

    run(test, answer_s=0.2, queue_s=0.1)


def test_a_full_queue_refuses_at_once_with_a_time_to_come_back_and_an_empty_one_takes_any() -> None:
    async def test(pipeline: Pipeline, decoders: ByHand, model: Model) -> None:
        model.gate.clear()
        full = ask(pipeline, *[b"a"] * 8)
        await until(lambda: len(model.batches) == 1)
        with pytest.raises(Problem) as caught:
            await ask(pipeline, b"b")
        assert (caught.value.status, caught.value.code, caught.value.headers) == (503, "busy", {"Retry-After": "1"})
        model.gate.set()
        assert numbers(await full) == [ord("a")] * 8
        assert numbers(await ask(pipeline, b"b")) == [ord("b")]

    run(test, batch=8, queue_images=8, images=8)


def test_requests_are_refused_when_those_before_them_would_take_too_long() -> None:
    async def test(pipeline: Pipeline, decoders: ByHand, model: Model) -> None:
        pipeline._pass_s.add(4.0)
        first = ask(pipeline, b"a")
        model.gate.clear()
        await asyncio.sleep(0)
        with pytest.raises(Problem) as caught:
            await ask(pipeline, b"b")
        assert caught.value.headers == {"Retry-After": "4"}
        model.gate.set()
        await first

    run(test, queue_s=3)


def test_an_expensive_image_keeps_no_cheap_one_waiting() -> None:
    async def test(pipeline: Pipeline, decoders: ByHand, model: Model) -> None:
        decoders.gate.clear()
        expensive = [ask(pipeline, b"x", header=EXPENSIVE), ask(pipeline, b"y", header=EXPENSIVE)]
        assert numbers(await ask(pipeline, b"a")) == [ord("a")]
        assert not any(task.done() for task in expensive)
        decoders.gate.set()
        assert [numbers(await task) for task in expensive] == [[ord("x")], [ord("y")]]

    run(test)


def test_no_more_than_16_expensive_images_wait_and_cheap_ones_are_let_in_beside_them() -> None:
    async def test(pipeline: Pipeline, decoders: ByHand, model: Model) -> None:
        decoders.gate.clear()
        waiting = [ask(pipeline, b"x", header=EXPENSIVE) for _ in range(16)]
        await asyncio.sleep(0)
        with pytest.raises(Problem, match="16 images that take long") as refused:
            await ask(pipeline, b"x", header=EXPENSIVE)
        assert (refused.value.status, refused.value.code, refused.value.headers) == (503, "busy", {"Retry-After": "1"})
        assert numbers(await ask(pipeline, b"a")) == [ord("a")]
        waiting[0].cancel()
        await asyncio.sleep(0)
        waiting.append(ask(pipeline, b"y", header=EXPENSIVE))
        decoders.gate.set()
        assert numbers(await waiting[-1]) == [ord("y")]

    run(test, queue_images=64)


def test_one_request_may_have_many_expensive_images_when_no_other_waits() -> None:
    async def test(pipeline: Pipeline, decoders: ByHand, model: Model) -> None:
        assert len(numbers(await ask(pipeline, *([b"x"] * 32), header=EXPENSIVE))) == 32

    run(test, queue_images=64)


def test_nothing_is_kept_of_requests_that_ended_before_their_images_were_decoded() -> None:
    async def test(pipeline: Pipeline, decoders: ByHand, model: Model) -> None:
        decoders.gate.clear()
        tasks = [ask(pipeline, b"x" * 1000, header=EXPENSIVE) for _ in range(5)]
        await until(lambda: len(decoders.groups) == 1)
        for task in tasks:
            task.cancel()
        await until(lambda: not any(pipeline._decoding.values()))  # the one that was decoded is given up too
        assert [len(lane) for lane in pipeline._lanes.values()] == [0, 0]
        decoders.gate.set()
        assert numbers(await ask(pipeline, b"y", header=EXPENSIVE)) == [ord("y")]
        assert decoders.groups == [[b"x" * 1000], [b"y"]]

    run(test)


def test_an_expensive_image_is_refused_when_those_before_it_would_take_too_long() -> None:
    async def test(pipeline: Pipeline, decoders: ByHand, model: Model) -> None:
        pipeline._costly_s.add(4.0)
        decoders.gate.clear()
        first = ask(pipeline, b"x", header=EXPENSIVE)
        await until(lambda: len(decoders.groups) == 1)
        with pytest.raises(Problem) as caught:
            await ask(pipeline, b"y", header=EXPENSIVE)
        assert (caught.value.status, caught.value.headers) == (503, {"Retry-After": "4"})
        assert numbers(await ask(pipeline, b"a")) == [ord("a")]
        decoders.gate.set()
        assert numbers(await first) == [ord("x")]

    run(test, queue_s=3)


@pytest.mark.parametrize("broken", ["nan", "short"])
def test_an_answer_that_is_none_is_an_error_and_not_a_wait(broken: str) -> None:
    async def test(pipeline: Pipeline, decoders: ByHand, model: Model) -> None:
        rows: list[tuple[list[int], list[float]]] = [([1], [float("nan")])] if broken == "nan" else []
        pipeline._forward = lambda pixels, top: rows
        with pytest.raises(RuntimeError, match="not finite" if broken == "nan" else "1 images were computed to 0 rows"):
            await ask(pipeline, b"a")

    run(test)


def test_decoders_that_fail_are_unavailable_and_asked_again_next_time() -> None:
    async def test(pipeline: Pipeline, decoders: ByHand, model: Model) -> None:
        decode, decoders.decode = decoders.decode, None  # type: ignore[method-assign, assignment]
        with pytest.raises(Problem) as caught:
            await ask(pipeline, b"a")
        assert (caught.value.status, caught.value.code) == (503, "unavailable")
        decoders.decode = decode  # type: ignore[method-assign]
        assert numbers(await ask(pipeline, b"a")) == [ord("a")]

    run(test)


def test_an_idle_model_waits_for_company_if_it_shall_but_never_with_a_full_batch() -> None:
    async def test(pipeline: Pipeline, decoders: ByHand, model: Model) -> None:
        pipeline._batching = Batching(images=4, wait_ms=60_000)
        first = ask(pipeline, b"a")
        await until(lambda: pipeline._gathers is not None)
        assert model.batches == []
        others = [ask(pipeline, data) for data in (b"b", b"c", b"d")]
        assert numbers(await first) == [ord("a")]
        assert [numbers(await other) for other in others] == [[ord("b")], [ord("c")], [ord("d")]]
        assert model.batches == [[ord(letter) for letter in "abcd"]]

    run(test)


def test_requests_in_hand_are_given_up_when_the_replica_ends() -> None:
    async def test(pipeline: Pipeline, decoders: ByHand, model: Model) -> None:
        model.gate.clear()
        task = ask(pipeline, b"a")
        await until(lambda: len(model.batches) == 1)
        pipeline.close()
        with pytest.raises(Problem) as caught:
            await task
        assert caught.value.code == "unavailable"

    run(test)
