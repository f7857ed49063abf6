"""Images made to cost whoever decodes them: small files of many pixels or passes, and headers without an end."""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

__all__ = [
    "BOMBS",
    "animated_webp",
    "empty_app_segments",
    "empty_png_chunks",
    "exif_jpeg",
    "fill_bytes",
    "good_image",
    "huge_png",
    "inflating_png",
    "long_jpeg",
    "lossless_webp",
    "many_scans",
    "noise_after_soi",
    "text_png",
]

SOI = b"\xff\xd8"
_PNG = b"\x89PNG\r\n\x1a\n"
_SHORT, _LONG, _RATIONAL = 3, 4, 5
_ORIENTATION = 0x0112


def good_image(width: int = 500, height: int = 375, kind: str = "JPEG", *, seed: int = 0, **options: object) -> bytes:
    """A picture of smooth noise."""
    small = np.random.default_rng(seed).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(small).resize((width, height)).save(file, kind, **options)
    return file.getvalue()


def long_jpeg(width: int, height: int = 1) -> bytes:
    """A line of pixels; resized to a shorter side of 256 it would have 256 times as many columns."""
    return good_image(width, height)


def many_scans(count: int, width: int = 1000, height: int = 1000) -> bytes:
    """A progressive JPEG of ``count`` scans: its last one again and again, of which only the header is repeated.

    A decoder goes over all pixels for each, and warns.
    """
    data = good_image(width, height, progressive=True)
    last = data.rfind(b"\xff\xda")
    head = data[last : last + 2 + int.from_bytes(data[last + 2 : last + 4], "big")]
    return data[:-2] + head * (count - len(re.findall(b"\xff\xda", data))) + data[-2:]


def fill_bytes(size: int) -> bytes:
    """``size`` bytes 0xFF before the first marker, which are valid (T.81, B.1.1.2)."""
    return SOI + b"\xff" * size + good_image()[2:]


def empty_app_segments(size: int) -> bytes:
    """Segments of no content before the frame header."""
    return SOI + b"\xff\xe5\0\2" * (size // 4) + good_image()[2:]


def empty_png_chunks(size: int) -> bytes:
    """Ancillary chunks of no content before the first pixels."""
    data = good_image(kind="PNG")
    at = data.index(b"IDAT") - 4
    return data[:at] + _chunk(b"teSt", b"") * (size // 12) + data[at:]


def noise_after_soi(size: int) -> bytes:
    return SOI + b"\xff" + np.random.default_rng(0).bytes(size)


def huge_png(side: int = 50_000) -> bytes:
    """Black, and 1,000 times smaller than its pixels."""
    row = zlib.compressobj(9, wbits=15)
    line = bytes(1 + side * 3)
    packed = b"".join(row.compress(line) for _ in range(20)) + row.flush()
    return _PNG + _chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)) + _chunk(b"IDAT", packed) + _END


def inflating_png(inflated: int) -> bytes:
    """16 by 16 pixels, and ``inflated`` more bytes in their stream than these have."""
    packer = zlib.compressobj(9)
    zeros = bytes(2**20)
    packed = b"".join(packer.compress(zeros) for _ in range(inflated >> 20)) + packer.flush()
    return _PNG + _chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 16, 8, 2, 0, 0, 0)) + _chunk(b"IDAT", packed) + _END


def text_png(unpacked: int = 500 * 2**20) -> bytes:
    """A picture with a packed text of ``unpacked`` bytes, which asks for its orientation to be read from there."""
    packer = zlib.compressobj(9)
    zeros = bytes(2**20)
    packed = b"".join(packer.compress(zeros) for _ in range(unpacked >> 20)) + packer.flush()
    data = good_image(kind="PNG")
    at = data.index(b"IDAT") - 4
    return data[:at] + _chunk(b"zTXt", b"Raw profile type exif\0\0" + packed) + data[at:]


def animated_webp(frames: int = 400, side: int = 2000) -> bytes:
    """An animation that is one frame of a large canvas, ``frames`` times."""
    file = io.BytesIO()
    picture = Image.new("RGB", (side, side), (90, 60, 30))
    picture.save(file, "WEBP", save_all=True, append_images=[Image.new("RGB", (side, side))], duration=10)
    data = file.getvalue()
    at = data.index(b"ANMF")
    frame = data[at : at + 8 + struct.unpack_from("<I", data, at + 4)[0]]
    body = data[12:at] + frame * frames
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def lossless_webp(side: int = 7000) -> bytes:
    """A black square, of 2 kB: as many pixels as a request may have."""
    file = io.BytesIO()
    Image.new("RGB", (side, side)).save(file, "WEBP", lossless=True)
    return file.getvalue()


def exif_jpeg(kind: int = _RATIONAL, count: int = 1) -> bytes:
    """A picture whose orientation is of another type, or of more values than a file can hold."""
    entry = struct.pack("<HHLL", _ORIENTATION, kind, count, 26)
    block = b"Exif\0\0II*\0" + struct.pack("<LH", 8, 1) + entry + bytes(4) + struct.pack("<LL", 6, 1)
    data = good_image()
    return SOI + b"\xff\xe1" + struct.pack(">H", 2 + len(block)) + block + data[2:]


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


_END = _chunk(b"IEND", b"")

BOMBS: dict[str, Callable[[], bytes]] = {
    "JPEG of 4,000 by 1": lambda: long_jpeg(4000),
    "JPEG of 16,000 by 1": lambda: long_jpeg(16_000),
    "JPEG of 65,500 by 1": lambda: long_jpeg(65_500),
    "JPEG of 128 by 1": lambda: long_jpeg(128),
    "progressive JPEG of 200 scans": lambda: many_scans(200),
    "progressive JPEG of 5,000 scans": lambda: many_scans(5000),
    "progressive JPEG of 100 scans": lambda: many_scans(100, 3000, 3000),
    "8 MB of fill bytes": lambda: fill_bytes(8_000_000),
    "8 MB of empty segments": lambda: empty_app_segments(8_000_000),
    "8 MB of empty chunks": lambda: empty_png_chunks(8_000_000),
    "16 MB of noise": lambda: noise_after_soi(16_000_000),
    "PNG of 50,000 by 50,000": huge_png,
    "PNG with more data than pixels": lambda: inflating_png(2**30),
    "PNG with a packed text": text_png,
    "animated WebP": animated_webp,
    "EXIF orientation as a fraction": lambda: exif_jpeg(_RATIONAL),
    "EXIF orientation of 2^32 - 1 values": lambda: exif_jpeg(_SHORT, 2**32 - 1),
}
"""each abuse by its name, and how its body is made"""
