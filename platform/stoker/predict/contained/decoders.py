"""Decode images from anybody under a deadline: cheap ones in groups, the others one by one, each in its own lane."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from stoker.dataset.decode.work import decoding_work
from stoker.dataset.format.image_header import ImageHeader, read_header
from stoker.dataset.undecodable import UndecodableImage
from stoker.predict.contained.child import Answer, Child, ChildDied, ChildEnded, ChildLate
from stoker.predict.contained.frames import MOST_IMAGES
from stoker.predict.contained.template import DecodersGone, Template
from stoker.predict.contained.tiny import TINY_JPEG

__all__ = ["Decoders"]

_LOG = logging.getLogger(__name__)
_PIXELS_A_SECOND = 200_000_000
"""of ``decoding_work``; two fifths of what a processor of 2024 does"""
_GENEROUS = 5
_CHEAP, _GROUP = 4_000_000, 16_000_000
"""work of an image in the small lane, and of a group there, at most: some 8 and 32 ms"""
_LARGE_NICENESS = 5
_MOST_TRIES = 3
_PAUSE_S = 0.1
"""after an error that nobody expects"""
_PROBE_S = 150.0
"""until a lane is given up: the template starts within 120 s and forks within 30 s"""
_PROBE_WAIT_S = 2.0
"""until a lane at work need not decode the small image too"""
_CLOSED = "the decoders were closed"


@dataclass(eq=False)
class _Call:
    """One call of ``decode``: what is left of it, and its results."""

    images: Sequence[bytes]
    limits_s: list[float]
    done: asyncio.Future[None]
    results: list[NDArray[np.uint8] | UndecodableImage | None]
    left: int
    children: set[Child] = field(default_factory=set)
    """that decode an expensive image of it now"""

    def answer(self, place: int, result: NDArray[np.uint8] | UndecodableImage) -> None:
        self.results[place] = result
        self.left -= 1
        if not self.left and not self.done.done():
            self.done.set_result(None)

    def fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)


@dataclass
class _Group:
    """Images of a call, by their places, that go to a child together."""

    call: _Call
    places: Sequence[int]
    deaths: int = 0
    """of children that had the first of these alone"""
    restarts: int = 0
    """of the template that were not these images' doing"""


class _Lane:
    """Groups that wait for a child; calls take turns."""

    def __init__(self, niceness: int) -> None:
        self.niceness = niceness
        self.groups = OrderedDict[int, deque[_Group]]()
        """by the call that they are of"""
        self.at_work = set[Child]()
        self._waiting: deque[asyncio.Future[None]] = deque()

    def put(self, group: _Group, *, is_first: bool = False) -> None:
        groups = self.groups.setdefault(id(group.call), deque())
        groups.appendleft(group) if is_first else groups.append(group)
        if is_first:
            self.groups.move_to_end(id(group.call), last=False)
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                break

    async def get(self) -> _Group:
        while True:
            while self.groups:
                call, groups = self.groups.popitem(last=False)
                group = groups.popleft()
                if group.call.done.done():
                    continue  # cancelled, and the rest of it too
                if groups:
                    self.groups[call] = groups  # behind the others
                return group
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            await waiter


class Decoders:
    """Decode untrusted images to uint8 [S, S, 3] in processes of their own, under a deadline.

    An image is given :func:`decoding_work` / ``pixels_a_second`` seconds of a processor, five times, and ``grace_s``.
    Its process is killed then, and when it has taken ``most_memory_mb`` MB; the image cannot be decoded, and others
    that were with it are decoded in a new process. ``workers`` processes decode the cheap images, and as many the
    others, at a lower priority. Use from one event loop, of asyncio or uvloop.
    """

    def __init__(
        self,
        *,
        image_size: int,
        resize: int,
        workers: int = 1,
        pixels_a_second: int = _PIXELS_A_SECOND,
        grace_s: float = 2.0,
        most_memory_mb: int = 1500,
    ) -> None:
        self._image_size, self._resize, self._workers = image_size, resize, workers
        self._rate, self._grace_s, self._most_memory_mb = pixels_a_second / _GENEROUS, grace_s, most_memory_mb
        self._template = Template(image_size=image_size, resize=resize, most_memory_mb=most_memory_mb)
        self._small, self._large = _Lane(0), _Lane(_LARGE_NICENESS)
        self._tasks: list[asyncio.Task[None]] = []
        self._calls = WeakSet[_Call]()
        self._is_closed = False
        self.killed = 0
        """children that were killed, or died"""

    @property
    def template_pid(self) -> int | None:
        """Process id of the template, whose children decode; None while it is not there."""
        return self._template.pid

    async def start(self) -> None:
        """Start the processes and wait until they can decode.

        Raises:
            DecodersGone: they end, or do not answer within two minutes, or :meth:`close` was called.
        """
        await self._template.start()
        if self._is_closed:
            self._template.close()
            raise DecodersGone(_CLOSED)
        self._tasks = [
            asyncio.create_task(self._work(lane)) for lane in (self._small, self._large) for _ in range(self._workers)
        ]
        await self.probe()

    @property
    def workers(self) -> int:
        """Groups that are decoded at a time, in each of the two lanes."""
        return self._workers

    def is_cheap(self, header: ImageHeader, length: int) -> bool:
        """Whether an image of ``length`` bytes is decoded in a group, and not alone in the other lane."""
        return decoding_work(header, length, resize=self._resize) <= _CHEAP

    async def decode(
        self, images: Sequence[bytes], headers: Sequence[ImageHeader]
    ) -> list[NDArray[np.uint8] | UndecodableImage]:
        """The pixels of each image as ``evaluation_image`` gives them, uint8 [S, S, 3], or why there are none.

        ``headers`` are those of ``read_header``. Calls at the same time take turns. A call that is cancelled leaves
        nothing behind.

        Raises:
            DecodersGone: the processes cannot be started again, or :meth:`close` was called.
        """
        if not images:
            return []
        works = [
            decoding_work(header, len(data), resize=self._resize) for data, header in zip(images, headers, strict=True)
        ]
        call = self._call(images, works)
        places: list[int] = []
        total = 0
        for place, work in enumerate(works):
            if work > _CHEAP:
                self._large.put(_Group(call, (place,)))
                continue
            if places and (len(places) == MOST_IMAGES or total + work > _GROUP):
                self._small.put(_Group(call, places))
                places, total = [], 0
            places.append(place)
            total += work
        if places:
            self._small.put(_Group(call, places))
        return await self._answered(call)

    async def probe(self) -> None:
        """Decode a small image in each lane, before all that wait there.

        A lane passes too if after two seconds all its processes still decode images that may take longer: each is
        killed when its time is over. Returns or raises within 150 s, and within seconds while the processes run.

        Raises:
            DecodersGone: a lane does not decode it.
        """
        await asyncio.gather(self._probe(self._small), self._probe(self._large))

    async def _probe(self, lane: _Lane) -> None:
        header = read_header(TINY_JPEG)
        assert header is not None
        call = self._call([TINY_JPEG], [header.held_pixels])
        lane.put(_Group(call, (0,)), is_first=True)
        answer = asyncio.create_task(self._answered(call))
        try:
            async with asyncio.timeout(_PROBE_S):
                while not (await asyncio.wait([answer], timeout=_PROBE_WAIT_S))[0]:
                    is_waiting = id(call) in lane.groups  # else it is being decoded, and has a deadline of its own
                    if is_waiting and self._is_at_work(lane):
                        return
                (result,) = answer.result()
        except TimeoutError:
            raise DecodersGone(f"the processes that decode images do not answer within {_PROBE_S:g} s") from None
        finally:
            lane.groups.pop(id(call), None)
            answer.cancel()
        if isinstance(result, UndecodableImage):
            raise DecodersGone(f"the processes that decode images do not decode one that is valid: {result}")

    def _is_at_work(self, lane: _Lane) -> bool:
        return len(lane.at_work) == self._workers and all(child.is_in_time for child in lane.at_work)

    def close(self) -> None:
        """End the processes. Calls that wait, and later ones, raise :class:`DecodersGone`."""
        self._is_closed = True
        for task in self._tasks:
            task.cancel()
        self._template.close()
        for call in list(self._calls):
            call.fail(DecodersGone(_CLOSED))
        self._small.groups.clear()
        self._large.groups.clear()

    def _call(self, images: Sequence[bytes], works: Sequence[int]) -> _Call:
        if self._is_closed:
            raise DecodersGone(_CLOSED)
        if not self._tasks:
            raise DecodersGone("the decoders were not started; await start() first")
        limits_s = [self._grace_s + work / self._rate for work in works]
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        call = _Call(images, limits_s, done, [None] * len(images), len(images))
        self._calls.add(call)
        return call

    async def _answered(self, call: _Call) -> list[NDArray[np.uint8] | UndecodableImage]:
        try:
            await call.done
        finally:
            for child in call.children:  # only if the call was cancelled: nobody waits for what takes long
                child.end()
        return [result for result in call.results if result is not None]

    async def _work(self, lane: _Lane) -> None:
        """Give one child after another the groups of ``lane``."""
        child: Child | None = None
        said = ""
        try:
            while True:
                group = await lane.get()
                is_used = False
                try:
                    child = child or await Child.forked(self._template, lane.niceness, self._image_size)
                    is_used = await self._decode(lane, group, child)
                    said, is_expected = "", True
                except Exception as error:
                    is_expected = isinstance(error, DecodersGone)
                    gone = error if is_expected else DecodersGone(f"decoding failed: {type(error).__name__}: {error}")
                    if said != str(gone):  # not for each image
                        said = str(gone)
                        _LOG.error("%s", gone, exc_info=None if is_expected else error)
                    group.call.fail(gone)
                if child is not None and not is_used:
                    child.close()
                    child = None
                    self.killed += 1
                if not is_expected:
                    await asyncio.sleep(_PAUSE_S)
        finally:
            if child is not None:
                with suppress(OSError):
                    child.close()

    async def _decode(self, lane: _Lane, group: _Group, child: Child) -> bool:
        """Decode ``group``, or put what is left of it back; returns whether the child is still to be used."""
        call, places, answered = group.call, group.places, 0

        def answer(result: Answer) -> None:
            nonlocal answered
            call.answer(places[answered], self._no_memory() if result is None else result)
            answered += 1

        lane.at_work.add(child)
        if lane is self._large:
            call.children.add(child)
        try:
            await child.decode([call.images[p] for p in places], [call.limits_s[p] for p in places], answer)
            return True
        except ChildLate:
            answer(self._late(call.limits_s[places[answered]]))
        except ChildEnded:
            pass
        except ChildDied:
            if child.has_lost_template:
                if group.restarts == _MOST_TRIES:
                    raise DecodersGone("the process that decodes images was ended again and again") from None
                lane.put(_Group(call, places[answered:], group.deaths, group.restarts + 1), is_first=True)
                return False
            if group.deaths:
                answer(self._died())
            else:
                lane.put(_Group(call, places[answered : answered + 1], 1), is_first=True)
                answered += 1
        finally:
            lane.at_work.discard(child)
            call.children.discard(child)
        if places[answered:]:
            lane.put(_Group(call, places[answered:]), is_first=True)
        return False

    def _late(self, limit_s: float) -> UndecodableImage:
        return UndecodableImage(
            f"the image takes too long to decode (more than {limit_s:.1f} s); save it as an ordinary JPEG or PNG"
        )

    def _no_memory(self) -> UndecodableImage:
        return UndecodableImage(
            f"the image takes too much memory to decode (more than {self._most_memory_mb} MB); scale it down"
        )

    def _died(self) -> UndecodableImage:
        return UndecodableImage("the image ends the program that decodes it; save it as an ordinary JPEG or PNG")
