"""Nothing that a child sends is believed before it is checked: an image may have taken it over."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import time

import pytest

from stoker.predict.contained.child import Child, ChildDied, ChildEnded, ChildLate
from stoker.predict.contained.template import Template

SIZE, DATA = 64, b"what was sent there"
NO_ANSWERS = {
    "an unknown verdict": b"z" + struct.pack("<I", 3 * SIZE**2),
    "too many pixels": b"p" + struct.pack("<I", 3 * SIZE**2 + 1) + bytes(3 * SIZE**2 + 1),
    "a reason without an end": b"r" + struct.pack("<I", 2**32 - 1),
    "a long reason": b"r" + struct.pack("<I", 1001) + b"x" * 1001,
    "a content where there is none": b"m" + struct.pack("<I", 1),
    "half an answer": b"p" + struct.pack("<I", 3 * SIZE**2) + bytes(100),
}


@pytest.mark.parametrize("name", NO_ANSWERS)
def test_what_is_no_answer_is_not_taken_for_one(name: str) -> None:
    async def test() -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        answers: list[object] = []
        child = Child(Template(image_size=SIZE, resize=72, most_memory_mb=1), ours, os.getpid(), SIZE)
        with theirs:
            theirs.sendall(NO_ANSWERS[name])
            theirs.shutdown(socket.SHUT_WR)
            with pytest.raises(ChildDied):
                await child.decode([DATA], [60.0], answers.append)
        child.close()
        assert answers == []

    asyncio.run(test())


def test_a_reason_is_one_line_of_text_whatever_a_child_says() -> None:
    async def test() -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        answers: list[object] = []
        child = Child(Template(image_size=SIZE, resize=72, most_memory_mb=1), ours, os.getpid(), SIZE)
        with theirs:
            theirs.sendall(b"r" + struct.pack("<I", 6) + b"a\n\x1b[\xff\xc3")
            await child.decode([DATA], [60.0], answers.append)
        child.close()
        assert [str(answer) for answer in answers] == ["a??[\ufffd\ufffd"]

    asyncio.run(test())


REFUSED = b"r" + struct.pack("<I", 3) + b"bad"
LATE = {
    "no answer": (b"", [0.01], ChildLate, 0),
    "the answer": (REFUSED, [0.01], ChildEnded, 1),
    "half the answer": (REFUSED[:6], [0.01], ChildDied, 0),
    "the first of two answers": (REFUSED, [0.01, 60.0], ChildEnded, 1),
    "one and a half of two answers": (REFUSED + REFUSED[:6], [0.01, 60.0], ChildEnded, 1),
    "both answers": (REFUSED * 2, [0.01, 60.0], ChildEnded, 2),
}


@pytest.mark.parametrize("name", LATE)
def test_a_late_child_costs_only_the_image_that_was_late_and_only_without_its_answer(name: str) -> None:
    """The child is found late while its answers wait to be read, because the event loop was busy with something."""
    sent, limits_s, error, count = LATE[name]

    async def test() -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        answers: list[object] = []
        child = Child(Template(image_size=SIZE, resize=72, most_memory_mb=1), ours, os.getpid(), SIZE)
        with theirs:
            decoding = asyncio.create_task(child.decode([DATA] * len(limits_s), limits_s, answers.append))
            await asyncio.sleep(0)
            theirs.sendall(sent)
            until = time.process_time() + 0.1
            while time.process_time() < until:
                pass
            with pytest.raises(error):
                await asyncio.wait_for(decoding, 50)
        child.close()
        assert [str(answer) for answer in answers] == ["bad"] * count

    asyncio.run(test())
