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

__all__ = ["Answer", "Child", "ChildDied", "ChildEnded", "ChildLate"]

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


class ChildEnded(Exception):
    """The child was killed, but not for the image that is the next to be answered, if there is one."""


class Child:
    """One process that decodes one group at a time."""

    def __init__(self, template: Template, connection: socket.socket, pid: int, image_size: int) -> None:
        self._template, self._connection, self.pid, self._size = template, connection, pid, image_size
        self._start = template.starts
        self._has_ended = False
        self._late: int | None = None
        """the image, by its number in the group, that was being waited for when the child was found late"""
        self._number = self._received = 0
        """the image that is waited for, and the bytes of its answer that have come"""
        self._timer: asyncio.TimerHandle
        self._limit_s = self._since = self._since_cpu = 0.0

    @classmethod
    async def forked(cls, template: Template, niceness: int, image_size: int) -> Child:
        """
        Raises:
            DecodersGone: see :meth:`Template.fork`.
        """
        return cls(template, *await template.fork(niceness), image_size)

    @property
    def has_lost_template(self) -> bool:
        """Whether the template that forked it has ended, and the child with it, be there a new template or not."""
        return self._template.starts != self._start or self._template.has_ended

    @property
    def is_in_time(self) -> bool:
        """Whether the image that it decodes now may take longer still."""
        return time.monotonic() - self._since < _MOST_WALL * self._limit_s

    def end(self) -> None:
        """Kill the child; whoever waits for an answer that has not come yet is told at once."""
        self._has_ended = True
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
            ChildEnded: it was killed, and whatever is not answered is to be decoded by another.
        """
        loop = asyncio.get_running_loop()
        self._late = None
        self._allow(0, limits_s[0])
        self._timer = loop.call_later(limits_s[0], self._look)
        heads = [COUNT.pack(len(images)), *(COUNT.pack(len(image)) for image in images)]
        try:
            await loop.sock_sendall(self._connection, b"".join([*heads, *images]))
            for number, limit_s in enumerate(limits_s):
                if number:
                    self._allow(number, limit_s)
                answered(await self._answer())
        except (OSError, _Ended):
            raise self._why() from None
        finally:
            self._timer.cancel()
        if self._has_ended:  # what it had sent by then could still be read
            raise ChildEnded

    def _why(self) -> Exception:
        """Why no answer comes. What was sent before the child was killed is read first, so it may have been in time."""
        if not self._has_ended:
            return ChildDied()
        if self._late != self._number:
            return ChildEnded()
        return ChildDied() if self._received else ChildLate()  # half an answer: it may have waited for its reader

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
            self._received += got
            view = view[got:]

    def _allow(self, number: int, limit_s: float) -> None:
        self._number, self._received = number, 0
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
        self._late = self._number
        self.end()

    def _cpu_s(self) -> float | None:
        """Processor time of the child in seconds; None if it has ended, of which its connection tells."""
        try:
            return time.clock_gettime(~self.pid << 3 | _CPU_CLOCK)
        except OSError:
            return None
