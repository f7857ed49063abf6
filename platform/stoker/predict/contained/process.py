"""The program of the template and its children: ``python -m stoker.predict.contained.process FD SIZE RESIZE MB``.

The template imports the decoders, decodes an image of each kind, and then forks a child whenever its parent asks for
one. It has one thread, so that a fork has whatever it had. It ends, and its children with it, when its parent does.
"""

from __future__ import annotations

import gc
import io
import os
import select
import signal
import socket
import sys
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from stoker.dataset.decode.evaluation import evaluation_image
from stoker.dataset.undecodable import UndecodableImage
from stoker.predict.contained.frames import (
    ANSWER,
    COUNT,
    FORK,
    LONGEST_REASON,
    MOST_IMAGES,
    NO_MEMORY,
    ORDER,
    PID,
    PIXELS,
    REFUSED,
)
from stoker.predict.contained.limits import bound, bound_memory, die_with_parent
from stoker.predict.contained.tiny import TINY_JPEG

__all__ = ["How", "main"]

_LOOKS_S = 1.0
"""between two looks whether the parent is still there: a process that it forked may hold the socket's other end"""


class How(NamedTuple):
    """What to make of an image, and the memory that this may take."""

    image_size: int
    resize: int
    most_memory_mb: int

    def decoded(self, data: bytes | memoryview) -> Tensor:
        return evaluation_image(data, image_size=self.image_size, resize=self.resize)


def main(descriptor: int, how: How) -> None:
    """Fork children as the parent at the other end of the socket ``descriptor`` asks, until it is gone."""
    parent, template = os.getppid(), os.getpid()
    control = socket.socket(fileno=descriptor)
    torch.set_num_threads(1)
    for data in (TINY_JPEG, *_tiny_images()):
        how.decoded(data)
    gc.collect()
    gc.freeze()  # a collection in a child would else write to, and so copy, every page with an object
    children = set[int]()
    wake, waker = socket.socketpair()
    waker.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    control.sendall(PID.pack(template))
    while os.getppid() == parent:
        ready, _, _ = select.select([control, wake], [], [], _LOOKS_S)
        if wake in ready:
            wake.recv(4096)
        children -= {child for child in children if os.waitpid(child, os.WNOHANG)[0]}
        if control not in ready:
            continue
        order, given, _, _ = socket.recv_fds(control, ORDER.size, 1)
        if len(order) < ORDER.size:
            break
        what, number = ORDER.unpack(order)
        if what == FORK:
            forked = os.fork()
            if forked == 0:
                try:
                    _be_child(given[0], number, template, how)
                finally:
                    os._exit(1)
            os.close(given[0])
            children.add(forked)
            control.sendall(PID.pack(forked))
        elif number in children:  # one that is not reaped: no other process can have its number
            os.kill(number, signal.SIGKILL)
    for child in children:
        os.kill(child, signal.SIGKILL)


def _tiny_images() -> list[bytes]:
    """One of each kind that Pillow decodes, so that a child, which opens no file, has what Pillow imports for them."""
    image, images = Image.new("RGB", (8, 8)), []
    for kind in ("PNG", "GIF", "WEBP"):
        file = io.BytesIO()
        image.save(file, kind, exif=b"Exif\0\0II*\0\x08\0\0\0\0\0")  # of a WebP with EXIF Pillow is the decoder
        images.append(file.getvalue())
    return images


def _be_child(given: int, niceness: int, template: int, how: How) -> None:
    die_with_parent(template)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.nice(niceness)
    bound_memory(how.most_memory_mb)
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):  # decoders write about every damaged image
        os.dup2(nothing, standard)
    os.dup2(given, 3)
    bound(3)
    _answer(socket.socket(fileno=3), how)


def _answer(parent: socket.socket, how: How) -> None:
    """Decode the groups that come, until the other end is closed."""
    while True:
        (count,) = COUNT.unpack(_exactly(parent, COUNT.size))
        if not 0 < count <= MOST_IMAGES:
            return
        lengths = [length for (length,) in COUNT.iter_unpack(_exactly(parent, count * COUNT.size))]
        images = memoryview(_exactly(parent, sum(lengths)))
        at = 0
        for length in lengths:
            verdict, content = _decoded(images[at : at + length], how)
            parent.sendall(ANSWER.pack(verdict, len(content)))
            parent.sendall(content)
            at += length


def _decoded(data: memoryview, how: How) -> tuple[bytes, bytes | memoryview]:
    try:
        image = how.decoded(data)
        return PIXELS, image.permute(1, 2, 0).contiguous().numpy().data.cast("B")
    except UndecodableImage as error:
        return REFUSED, str(error).encode()[:LONGEST_REASON]
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            return NO_MEMORY, b""
        raise  # and end: the parent reports it


def _exactly(parent: socket.socket, count: int) -> bytearray:
    received = bytearray(count)
    view, at = memoryview(received), 0
    while at < count:
        got = parent.recv_into(view[at:])
        if not got:
            os._exit(0)
        at += got
    return received


if __name__ == "__main__":
    main(int(sys.argv[1]), How(*map(int, sys.argv[2:])))
