"""Read the one tag of EXIF that decides over pixels: the orientation (CIPA DC-008, tag 0x0112).

Where writers break the standard, Pillow's reading counts, entry by entry: it turned the images of the data sets that
exist. So integers of any size are taken, the first entry with content counts, and a value that points out of the
data ends the reading. A number that is not 1 to 8, a fraction or a text is upright; nothing raises.
"""

from __future__ import annotations

import re
import struct
import zlib

__all__ = ["UPRIGHT", "exif_orientation", "profile_exif", "unpacked", "xmp_orientation"]

UPRIGHT = 1

_ORIENTATION = 0x0112
_LARGEST = 8
_PREFIX = b"Exif\0\0"
_BIG, _LITTLE = ">", "<"
_ORDERS = {
    b"MM\0\x2a": _BIG,
    b"II\x2a\0": _LITTLE,
    b"MM\x2a\0": _BIG,  # not valid, and read by Pillow; so are the next two
    b"II\0\x2a": _LITTLE,
    b"MM\0\x2b": _BIG,
}
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
"""bytes of a value by its type"""
_INTEGERS = {3: "H", 4: "L", 6: "b", 8: "h", 9: "l", 13: "L", 16: "Q"}
_ENTRY = 12
_INLINE = 4
"""bytes of a value that is in the entry itself, and not at an offset"""
_MOST_TEXT = 2**18
"""bytes of a text that are looked at: 128 kB of EXIF in hexadecimal digits, twice what a JPEG's segment holds"""
_MOST_ENTRIES = 1000
"""of a directory that are looked at; the tag's number is among the lowest, and they are in order"""
_XMP = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')


def exif_orientation(content: bytes | memoryview) -> int | None:
    """The orientation, 1 to 8, in an EXIF block with or without its prefix (once or twice); None if it has none.

    A block that is no EXIF, or whose value is not valid, is upright: 1.
    """
    for _ in range(2):
        content = content[len(_PREFIX) :] if content[: len(_PREFIX)] == _PREFIX else content
    if not len(content):
        return None
    order = _ORDERS.get(bytes(content[:4]))
    if order is None or len(content) < 8:
        return UPRIGHT
    (at,) = struct.unpack_from(f"{order}L", content, 4)
    if at + 2 > len(content):
        return None
    (entries,) = struct.unpack_from(f"{order}H", content, at)
    stop = min(at + 2 + min(entries, _MOST_ENTRIES) * _ENTRY, len(content) - _ENTRY + 1)
    return _in_directory(content, order, range(at + 2, stop, _ENTRY))


def _in_directory(content: bytes | memoryview, order: str, places: range) -> int | None:
    seen, outside = set[int](), 0
    for place in places:
        tag, kind, count = struct.unpack_from(f"{order}HHL", content, place)
        size = _SIZES.get(kind, 0) * count
        if tag in seen or not size:
            continue
        begin = place + 8
        if size > _INLINE:
            outside += size
            if outside > len(content):
                continue
            (begin,) = struct.unpack_from(f"{order}L", content, begin)
            if begin + size > len(content):
                return None
        if tag == _ORIENTATION:
            return _valid(struct.unpack_from(order + _INTEGERS[kind], content, begin)[0]) if kind in _INTEGERS else 1
        seen.add(tag)
    return None


def xmp_orientation(packet: bytes) -> int | None:
    """The orientation, 1 to 8, in an XMP packet; None if it has none."""
    found = _XMP.search(packet, 0, _MOST_TEXT)
    return _valid(int(found[1])) if found else None


def profile_exif(text: bytes) -> bytes:
    """The EXIF block in ImageMagick's text "Raw profile type exif": three lines, then hexadecimal digits.

    Empty if it is damaged.
    """
    try:
        return bytes.fromhex(text[:_MOST_TEXT].split(b"\n", 3)[3].decode("latin-1"))  # which passes over line ends
    except IndexError:
        return b""
    except ValueError:
        return b""


def unpacked(stream: bytes) -> bytes:
    """The first 256 kB of a zlib stream; empty if it is damaged."""
    try:
        return zlib.decompressobj().decompress(stream, _MOST_TEXT)
    except zlib.error:
        return b""


def _valid(value: int) -> int:
    return value if UPRIGHT <= value <= _LARGEST else UPRIGHT
