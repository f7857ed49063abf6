"""What a child does: decode the groups that come through its socket, image by image, and answer for each."""

from __future__ import annotations

import io
import os
import socket
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from stoker.dataset.decode.evaluation import evaluation_image
from stoker.dataset.undecodable import UndecodableImage
from stoker.predict.contained.frames import ANSWER, COUNT, LONGEST_REASON, MOST_IMAGES, NO_MEMORY, PIXELS, REFUSED
from stoker.predict.contained.tiny import TINY_JPEG

__all__ = ["How", "answer", "warm_up"]


class How(NamedTuple):
    """What to make of an image, and the memory that this may take."""

    image_size: int
    resize: int
    most_memory_mb: int

    def decoded(self, data: bytes | memoryview) -> Tensor:
        return evaluation_image(data, image_size=self.image_size, resize=self.resize)


def warm_up(how: How) -> None:
    """Decode an image of each kind, on one thread: a child, which opens no file, then has all that is imported."""
    torch.set_num_threads(1)
    for data in (TINY_JPEG, *_tiny_images()):
        how.decoded(data)


def answer(parent: socket.socket, how: How) -> None:
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


def _tiny_images() -> list[bytes]:
    """One of each kind that Pillow decodes."""
    image, images = Image.new("RGB", (8, 8)), []
    for kind in ("PNG", "GIF", "WEBP"):
        file = io.BytesIO()
        image.save(file, kind, exif=b"Exif\0\0II*\0\x08\0\0\0\0\0")  # of a WebP with EXIF Pillow is the decoder
        images.append(file.getvalue())
    return images
