"""From encoded images to the most probable classes: decode, gather a batch, one forward pass.

All state belongs to the event loop, so nothing is locked. Both stages are greedy: a stage that is idle takes what is
there, up to its limit, and while it works the next group gathers. A lone request therefore never waits for company,
and under load batches grow by themselves. ``wait_ms`` lets an idle model wait nevertheless.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from stoker.dataset.format.image_header import ImageHeader

from .answers import Problem
from .settings import Batching, Limits

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Answered", "Decoding", "Pipeline", "Row"]

logger = logging.getLogger(__name__)

Row = tuple[Sequence[int], Sequence[float]]
"""class numbers and probabilities of one image, the most probable first"""
Pixels = Any
"""uint8 [S, S, 3], as the decoders return it"""

_GROUP = 32
"""cheap images that one decoding process gets at once: it costs a message, and they come back together"""
_MOST_COSTLY = 16
"""images that are decoded alone, and wait or are being decoded: a picture of 50 million pixels fits 2 kB, so a few
clients could otherwise have all of a replica's requests in hand wait for one"""
_REMEMBERED = 15


class Decoding(Protocol):
    """What decodes: :class:`stoker.predict.contained.Decoders`."""

    @property
    def workers(self) -> int: ...
    def is_cheap(self, header: ImageHeader, length: int) -> bool: ...
    async def decode(
        self, images: Sequence[bytes], headers: Sequence[ImageHeader]
    ) -> Sequence[NDArray[Any] | Exception]: ...


class Answered(NamedTuple):
    """The rows of a request's images, and where its time went, in seconds."""

    rows: list[Row]
    queue_s: float
    decode_s: float
    model_s: float


class _Request:
    __slots__ = ("decode_s", "future", "images", "left", "model_s", "rows", "started", "top")

    def __init__(self, count: int, top: int, future: asyncio.Future[Answered]) -> None:
        self.images: list[_Image] = []
        self.rows: list[Row] = [((), ())] * count
        self.left = count
        self.top = top
        self.started = time.monotonic()
        self.decode_s = self.model_s = 0.0
        self.future = future


class _Image:
    __slots__ = ("data", "header", "is_cheap", "number", "pixels", "request", "task")

    def __init__(self, data: bytes, header: ImageHeader, request: _Request, number: int, *, is_cheap: bool) -> None:
        self.is_cheap = is_cheap
        self.task: asyncio.Task[None] | None = None
        self.data = data
        self.header = header
        self.request = request
        self.number = number
        self.pixels: Pixels = None


class Pipeline:
    """Predict images of concurrent requests together. For one event loop.

    ``forward(pixels, top)`` is called on a thread of its own with a list of at most ``batching.images`` images, and
    returns a row of ``top`` classes for each. ``on_batch(images, decode or forward, seconds, images that wait)`` hears
    of each group.
    """

    def __init__(
        self,
        forward: Callable[[list[Pixels], int], Sequence[Row]],
        decoders: Decoding,
        batching: Batching,
        limits: Limits,
        *,
        undecodable: type[Exception],
        on_batch: Callable[[int, str, float, int], None] = lambda images, stage, seconds, waiting: None,
    ) -> None:
        self._forward = forward
        self._decoders = decoders
        self._batching = batching
        self._limits = limits
        self._undecodable = undecodable
        self._on_batch = on_batch
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="forward")
        self._lanes: dict[bool, deque[_Image]] = {True: deque(), False: deque()}
        self._decoding = {True: 0, False: 0}
        self._decoded: deque[_Image] = deque()
        self._is_computing = False
        self._gathers: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._costly = 0
        self._costly_s = _Median()
        self._pass_s = _Median()
        self._waiting: set[_Request] = set()
        self.images = 0
        """images accepted and not answered"""

    def check_room(self, count: int = 1) -> None:
        """Refuse ``count`` images if those before them would take too long.

        Raises:
            Problem: 503 with Retry-After.
        """
        ahead = self.images
        wait_s = (ahead // self._batching.images + 1) * self._pass_s.value
        if ahead and (ahead + count > self._limits.queue_images or wait_s > self._limits.queue_s):
            detail = f"all of the model's time is taken ({ahead} images are waiting); try again"
            raise Problem(503, "busy", detail, {"Retry-After": str(max(1, round(wait_s)))})

    async def predict(self, images: Sequence[bytes], headers: Sequence[ImageHeader], top: int) -> Answered:
        """The ``top`` most probable classes of each image.

        Cancelling this gives the images up: what is not computed yet never will be.

        Raises:
            Problem: 422 if one of them cannot be decoded, 503 if the queue is full, 504 after ``answer_s``.
        """
        self.check_room(len(images))
        lanes = [self._decoders.is_cheap(header, len(data)) for data, header in zip(images, headers, strict=True)]
        costly = lanes.count(False)
        self._check_costly(costly)
        loop = asyncio.get_running_loop()
        request = _Request(len(images), top, loop.create_future())
        timer = loop.call_later(self._limits.answer_s, self._time_is_up, request)
        self.images += len(images)
        self._costly += costly
        self._waiting.add(request)
        try:
            for number, (data, header, is_cheap) in enumerate(zip(images, headers, lanes, strict=True)):
                image = _Image(data, header, request, number, is_cheap=is_cheap)
                request.images.append(image)
                self._lanes[is_cheap].append(image)
            self._decode_more()
            return await request.future
        finally:
            timer.cancel()
            request.future.cancel()
            self._waiting.discard(request)
            if request.left:
                self._drop(request)
            self.images -= len(images)
            self._costly -= costly

    def _drop(self, request: _Request) -> None:
        """Forget the images of a request that nobody waits for: their bytes, their place, what decodes one alone."""
        for image in request.images:
            image.data, image.pixels = b"", None
            if image.task is not None and not image.is_cheap:
                image.task.cancel()
        for is_cheap in {image.is_cheap for image in request.images}:
            lane = self._lanes[is_cheap]
            self._lanes[is_cheap] = deque(image for image in lane if image.request is not request)

    def _check_costly(self, count: int) -> None:
        ahead = self._costly
        wait_s = ahead / self._decoders.workers * self._costly_s.value
        if ahead and count and (ahead + count > _MOST_COSTLY or wait_s > self._limits.queue_s):
            detail = f"{ahead} images that take long to decode are waiting; try again, or scale the image down"
            raise Problem(503, "busy", detail, {"Retry-After": str(max(1, round(wait_s)))})

    async def run(self, function: Callable[[], Any]) -> Any:
        """Call ``function`` on the thread of the forward passes, behind the one that runs."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    def close(self) -> None:
        """Give up what is in hand: 503."""
        for request in self._waiting:
            self._fail(request, 0, Problem(503, "unavailable", "the replica ends; try again", {"Retry-After": "1"}))
        for task in self._tasks:
            task.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    # -- decoding --------------------------------------------------------------------------------------------------

    def _decode_more(self) -> None:
        for is_cheap, lane in self._lanes.items():
            while lane and self._decoding[is_cheap] < self._decoders.workers:
                group = _live(lane, _GROUP if is_cheap else 1)
                if not group:
                    break
                self._decoding[is_cheap] += 1
                task = asyncio.get_running_loop().create_task(self._decode(group, is_cheap))
                for image in group:
                    image.task = task
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _decode(self, group: list[_Image], is_cheap: bool) -> None:
        began = time.monotonic()
        decoded: Sequence[NDArray[Any] | Exception]
        try:
            decoded = await self._decoders.decode([image.data for image in group], [image.header for image in group])
            if len(decoded) != len(group):
                raise RuntimeError(f"{len(group)} images were decoded to {len(decoded)}")
        except Exception as error:
            logger.exception("the decoders failed")
            kind = type(error).__name__
            away = Problem(503, "unavailable", f"the decoders do not answer ({kind}); try again", {"Retry-After": "1"})
            decoded = [away] * len(group)
        finally:
            self._decoding[is_cheap] -= 1
            asyncio.get_running_loop().call_soon(self._decode_more)  # also if this was cancelled
        took = time.monotonic() - began
        if not is_cheap:
            self._costly_s.add(took)
        self._on_batch(len(group), "decode", took, self.images)
        for image, pixels in zip(group, decoded, strict=True):
            request = image.request
            image.data = b""
            request.decode_s = max(request.decode_s, took)
            if isinstance(pixels, Exception):
                self._fail(request, image.number, pixels)
            else:
                image.pixels = pixels
                self._decoded.append(image)
        self._compute_more()

    def _fail(self, request: _Request, number: int, error: Exception) -> None:
        if request.future.done():
            return
        if isinstance(error, self._undecodable):
            where = f"image {number + 1} of {len(request.rows)}: " if len(request.rows) > 1 else ""
            error = Problem(422, "undecodable_image", f"{where}{error}")
        request.future.set_exception(error)

    # -- the forward pass ------------------------------------------------------------------------------------------

    def _compute_more(self) -> None:
        if self._is_computing or not self._decoded:
            return
        if self._batching.wait_ms and len(self._decoded) < self._batching.images:
            if self._gathers is None:
                self._gathers = asyncio.get_running_loop().call_later(self._batching.wait_ms / 1000, self._gathered)
            return
        if self._gathers is not None:
            self._gathers.cancel()
            self._gathers = None
        self._compute()

    def _gathered(self) -> None:
        self._gathers = None
        if not self._is_computing:
            self._compute()

    def _compute(self) -> None:
        if batch := _live(self._decoded, self._batching.images):
            self._is_computing = True
            task = asyncio.get_running_loop().create_task(self._compute_batch(batch))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _compute_batch(self, batch: list[_Image]) -> None:
        began = time.monotonic()
        top = max(image.request.top for image in batch)
        pixels = [image.pixels for image in batch]
        try:
            loop = asyncio.get_running_loop()
            rows = await loop.run_in_executor(self._thread, self._forward, pixels, top)
            if len(rows) != len(batch):
                raise RuntimeError(f"{len(batch)} images were computed to {len(rows)} rows")
        except Exception as error:
            for image in batch:
                self._fail(image.request, image.number, error)
            return
        finally:
            self._is_computing = False
            took = time.monotonic() - began
            self._pass_s.add(took)
            self._on_batch(len(batch), "forward", took, self.images)
            self._compute_more()
        for image, (numbers, values) in zip(batch, rows, strict=True):
            request = image.request
            if not all(map(math.isfinite, values)):  # not JSON either
                self._fail(request, image.number, RuntimeError(f"probabilities are not finite: {values}"))
                continue
            request.rows[image.number] = (numbers[: request.top], values[: request.top])
            request.model_s = max(request.model_s, took)
            request.left -= 1
            if not request.left and not request.future.done():
                queue_s = time.monotonic() - request.started - request.decode_s - request.model_s
                answer = Answered(request.rows, max(0.0, queue_s), request.decode_s, request.model_s)
                request.future.set_result(answer)

    def _time_is_up(self, request: _Request) -> None:
        if not request.future.done():
            limit = self._limits.answer_s
            request.future.set_exception(
                Problem(504, "too_late", f"no answer within {limit:g} s; the request was given up; try again")
            )


class _Median:
    """The median of the last times in seconds, so that one that was held up says nothing; 0 before the first."""

    def __init__(self) -> None:
        self._last: deque[float] = deque(maxlen=_REMEMBERED)
        self.value = 0.0

    def add(self, seconds: float) -> None:
        self._last.append(seconds)
        self.value = sorted(self._last)[len(self._last) // 2]


def _live(images: deque[_Image], count: int) -> list[_Image]:
    """Take up to ``count`` images whose requests somebody still waits for."""
    found: list[_Image] = []
    while images and len(found) < count:
        image = images.popleft()
        if not image.request.future.done():
            found.append(image)
    return found
