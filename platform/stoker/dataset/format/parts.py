"""Walk the parts of an image file: the segments of a JPEG, the chunks of a PNG or a WebP.

Nothing is copied or decoded, no bytes raise an exception, and the time is linear in the file's length: fill bytes and
junk are passed over by a compiled pattern, and of parts that are too small to be an encoder's own only the first
65,536 are visited, or fewer where the caller says so.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

__all__ = [
    "EOI",
    "FRAMES",
    "HEADER_JUNK",
    "HEADER_PARTS",
    "MOST_PARTS",
    "SEQUENTIAL",
    "SOS",
    "jpeg_segments",
    "mcu_factors",
    "png_chunks",
    "without_metadata",
]

MOST_PARTS = 2**16
"""far beyond what encoders write: an ICC profile takes 255 segments at most, and 1 GB of extended XMP 16,384"""

HEADER_PARTS = 1000
"""of a header that is read where others wait for it: files have some ten, and 256 of the largest fill 16 MB"""
HEADER_JUNK = 2**16
"""bytes, likewise, of fill bytes and junk between its parts, of which files have hardly any"""

SOS, EOI = 0xDA, 0xD9
SEQUENTIAL = frozenset({0xC0, 0xC1})
"""frames of baseline and extended sequential Huffman coding"""
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""all frames, progressive, lossless and arithmetic ones too; DHT, JPG and DAC share their range"""
_LARGEST_FACTOR = 4
_SOI, _FIRST = 0xD8, 0xC0
_MARKER = re.compile(rb"\xff[^\x00\x01\xff\xd0-\xd7]", re.DOTALL)
"""a marker with a segment; 0xFF is else followed by 0 (a stuffed byte), 0xFF (fill bytes), TEM or RST: T.81, B.1.1"""

_SMALL = 8192
"""bytes; encoders write image data in chunks of at least 8 kB"""
_PNG_HEAD = struct.Struct(">I4s")
_PNG_FRAME = 12
"""bytes of a chunk around its content: its length and type before, its checksum after"""
_PNG_PIXELS = frozenset({b"tRNS", b"acTL", b"fcTL", b"fdAT"})
"""chunks that are ancillary by name (PNG 3rd edition, section 5.4), and yet part of the picture"""

_APP0, _APP14, _APP15, _COM = 0xE0, 0xEE, 0xEF, 0xFE
_COLOURS = {_APP0: (b"JFIF\0", 14), _APP14: (b"Adobe", 12)}
"""segments that say what the channels are: how they begin, and their length at least, by libjpeg's reading"""


def jpeg_segments(
    data: memoryview, *, most: int = MOST_PARTS, most_junk: int | None = None
) -> Iterator[tuple[int, int, int]]:
    """(marker, begin, end) of each segment from SOI to EOI, those between scans included, as libjpeg finds them.

    ``begin`` is the offset of the marker's 0xFF; ``end`` is beyond ``data`` where the file is truncated. Ends at a
    marker that decoders refuse, after ``most`` segments, and beyond ``most_junk`` bytes between them all.
    """
    at, size, search = 2, len(data), _MARKER.search
    junk = size if most_junk is None else most_junk
    for _ in range(most):
        found = search(data, at, at + junk + 2)
        if found is None:
            return
        begin = found.start()
        junk -= begin - at
        marker = data[begin + 1]
        if marker < _FIRST or marker in {_SOI, EOI} or begin + 4 > size:
            return
        length = data[begin + 2] << 8 | data[begin + 3]
        at = begin + 2 + (length if length > 2 else 2)
        yield marker, begin, at


def mcu_factors(frame: bytes) -> tuple[int, int] | None:
    """Blocks of an MCU, across and down, by the content of a frame header; None if it is damaged.

    An image of one component has MCUs of one block, whatever its factors say (T.81, A.2.2).
    """
    factors = [(byte >> 4, byte & 15) for byte in frame[7::3][: frame[5]]]
    if not factors or len(factors) != frame[5] or not all(1 <= f <= _LARGEST_FACTOR for pair in factors for f in pair):
        return None
    return (1, 1) if len(factors) == 1 else (max(across for across, _ in factors), max(down for _, down in factors))


def png_chunks(data: memoryview, *, most: int = MOST_PARTS) -> Iterator[tuple[bytes, int, int]]:
    """(type, begin, end) of each chunk up to IEND; the last one ends with ``data`` where the file is truncated.

    Ends after ``most`` chunks of less than 8 kB.
    """
    at, small, size, head = 8, 0, len(data), _PNG_HEAD.unpack_from
    while at + 8 <= size and small < most:
        length, kind = head(data, at)
        end = min(size, at + _PNG_FRAME + length)
        yield kind, at, end
        if kind == b"IEND":
            return
        at, small = end, small + (length < _SMALL)


def without_metadata(data: bytes | bytearray | memoryview, kind: str) -> bytes | bytearray | memoryview:
    """The same picture without texts, profiles and the like, for decoders that refuse pixels because of them.

    Pillow, for one, gives up at a text of a PNG that is longer than 1 MB, or at a short JFIF segment. Only what is in a
    JPEG (``kind`` jpg) or PNG is left out, of which nothing is copied if there is nothing to leave out.
    """
    view = memoryview(data)
    if kind == "png":
        stop, parts = 8, [(begin, end) for name, begin, end in png_chunks(view) if not _is_ancillary(name)]
    elif kind == "jpg":
        stop, parts = 2, _jpeg_parts(view)
    else:
        return data
    pieces = [(0, stop)]
    for begin, end in parts:
        if begin == stop:
            pieces[-1] = (pieces[-1][0], end)
        else:
            pieces.append((begin, end))
        stop = end
    return b"".join(view[begin:end] for begin, end in pieces) if len(pieces) > 1 else view[: pieces[0][1]]


def _is_ancillary(name: bytes) -> bool:
    return name.isalpha() and name[:1].islower() and name not in _PNG_PIXELS


def _jpeg_parts(view: memoryview) -> list[tuple[int, int]]:
    """The parts of the header to keep, and everything from the first scan on as one."""
    kept = list[tuple[int, int]]()
    for marker, begin, end in jpeg_segments(view):
        if marker == SOS:
            return [*kept, (begin, len(view))]
        if marker in _COLOURS:
            prefix, least = _COLOURS[marker]
            is_kept = end - begin - 4 >= least and view[begin + 4 : begin + 4 + len(prefix)] == prefix
        else:
            is_kept = not (_APP0 <= marker <= _APP15 or marker == _COM)
        if is_kept:
            kept.append((begin, end))
    return kept
