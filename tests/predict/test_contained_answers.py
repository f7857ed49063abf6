"""Nothing that a child sends is believed before it is checked: an image may have taken it over."""

from __future__ import annotations

import asyncio
import os
import socket
import struct

import pytest

from stoker.predict.contained.child import Child, ChildDied
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
