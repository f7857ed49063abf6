"""The parent's side of a child: a group of images goes there, and an answer for each comes back, or the child dies."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from stoker.dataset.undecodable import UndecodableImage
from stoker.predict.contained.frames import ANSWER, COUNT, LONGEST_REASON, NO_MEMORY, PIXELS, REFUSED
from stoker.predict.contained.template import Template

__all__ = ["Answer", "Child", "ChildDied", "ChildLate"]

_MOST_WALL = 4
"""times its limit that an image may take on a machine so busy that its decoder gets no processor"""
_LEAST_WAIT_S = 0.01
_CPU_CLOCK = 2
"""clock of a process's processor time, in the number that Linux makes of a process id: see clock_gettime(2)"""


Answer = NDArray[np.uint8] | UndecodableImage | None
"""the pixels, uint8 [S, S, 3]; why they cannot be decoded; or None where memory ran out"""
Answered = Callable[[Answer], None]


class _Ended(Exception):
    """The connection was closed, or carries what is no answer."""


class ChildDied(Exception):
    """The child ended, or sent what is no answer, before it answered for an image."""


class ChildLate(Exception):
    """The child took longer for an image than it may, and was killed."""


class Child:
    """One process that decodes one group at a time."""

    def __init__(self, template: Template, connection: socket.socket, pid: int, image_size: int) -> None:
        self._template, self._connection, self.pid, self._size = template, connection, pid, image_size
        self._is_late = False
        self._timer: asyncio.TimerHandle
        self._limit_s = self._since = self._since_cpu = 0.0

    @classmethod
    async def forked(cls, template: Template, niceness: int, image_size: int) -> Child:
        """
        Raises:
            DecodersGone: see :meth:`Template.fork`.
        """
        return cls(template, *await template.fork(niceness), image_size)

    def end(self) -> None:
        """Kill the child; whoever waits for its answer is told at once."""
        self._template.kill(self.pid)
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Kill the child and close its connection, for which nobody waits."""
        self.end()
        self._connection.close()

    async def decode(self, images: Sequence[bytes], limits_s: Sequence[float], answered: Answered) -> None:
        """Call ``answered`` for each image, in order, as its answer comes; ``limits_s``: the seconds each may take.

        Raises:
            ChildDied, ChildLate: there is no answer for the next one; the child is to be killed.
        """
        loop = asyncio.get_running_loop()
        self._allow(limits_s[0])
        self._timer = loop.call_later(limits_s[0], self._look)
        heads = [COUNT.pack(len(images)), *(COUNT.pack(len(image)) for image in images)]
        try:
            await loop.sock_sendall(self._connection, b"".join([*heads, *images]))
            for number, limit_s in enumerate(limits_s):
                if number:
                    self._allow(limit_s)
                answered(await self._answer())
        except (OSError, _Ended):
            raise (ChildLate() if self._is_late else ChildDied()) from None
        finally:
            self._timer.cancel()

    async def _answer(self) -> Answer:
        head = bytearray(ANSWER.size)
        await self._fill(memoryview(head))
        verdict, length = ANSWER.unpack(head)
        if verdict == PIXELS and length == 3 * self._size**2:
            pixels = np.empty((self._size, self._size, 3), np.uint8)
            await self._fill(pixels.data.cast("B"))
            return pixels
        if verdict == REFUSED and length <= LONGEST_REASON:
            reason = bytearray(length)
            await self._fill(memoryview(reason))
            text = "".join(c if c.isprintable() else "?" for c in reason.decode(errors="replace"))
            return UndecodableImage(text)
        if verdict == NO_MEMORY and not length:
            return None
        raise _Ended

    async def _fill(self, view: memoryview) -> None:
        loop = asyncio.get_running_loop()
        while view:
            got = await loop.sock_recv_into(self._connection, view)
            if not got:
                raise _Ended
            view = view[got:]

    def _allow(self, limit_s: float) -> None:
        self._limit_s, self._since, self._since_cpu = limit_s, time.monotonic(), self._cpu_s() or 0.0

    def _look(self) -> None:
        """End a child that is late, by its processor time: on a busy machine it may have had little of that."""
        used = self._cpu_s()
        if used is None:
            return
        taken = time.monotonic() - self._since
        left = min(self._limit_s - (used - self._since_cpu), _MOST_WALL * self._limit_s - taken)
        if left > 0:
            self._timer = asyncio.get_running_loop().call_later(max(left, _LEAST_WAIT_S), self._look)
            return
        self._is_late = True
        self.end()

    def _cpu_s(self) -> float | None:
        """Processor time of the child in seconds; None if it has ended, of which its connection tells."""
        try:
            return time.clock_gettime(~self.pid << 3 | _CPU_CLOCK)
        except OSError:
            return None
