"""Read what an image says about itself before its pixels: one reader for prepare, training, evaluation and serving.

Pillow and torchvision differ about broken metadata, so neither decides: pixels are decoded as they are stored, and
turned by the orientation that is read here. It is EXIF's (CIPA DC-008, tag 0x0112, in IFD 0 of a TIFF header):

====  =========================================================================================================
JPEG  segments APP1 that begin with ``Exif``, two zeros, before the scan; a second one continues the first
PNG   the chunk eXIf (PNG, third edition, 11.3.3.5), or ``Raw profile type exif`` as ImageMagick writes it
WebP  the chunk EXIF of the extended format
====  =========================================================================================================

An orientation that is only in XMP is not followed. One that is not a single whole number from 1 to 8 is 1, and nothing
in metadata is an error. The walk is bounded in steps, whatever the bytes say.
"""

from __future__ import annotations

import binascii
import struct
import zlib

__all__ = ["exif_orientation", "without_text"]

_MOST_PARTS = 4096
"""segments or chunks that are looked at; real images have some dozens"""
_MOST_ENTRIES = 1024
_PROFILE_BYTES = 1 << 17
"""of a compressed profile, unpacked"""
_EXIF = b"Exif\0\0"
_ORIENTATION = 0x0112
_NUMBERS = {3: "H", 4: "I", 6: "b", 8: "h", 9: "i"}
"""the types of TIFF that are whole numbers of up to four bytes"""
_BYTE_ORDERS = {b"II*\0": "<", b"II\0*": "<", b"MM\0*": ">", b"MM*\0": ">"}
"""as Pillow takes them: the number 42 in either order"""
_LAST = 8
_APP1, _SOS, _EOI, _FIRST_STANDALONE, _LAST_STANDALONE, _TEM = 0xE1, 0xDA, 0xD9, 0xD0, 0xD8, 0x01
_PNG_SIGNATURE_BYTES = 8
_TEXTS = frozenset({b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf"})


def exif_orientation(data: bytes | bytearray | memoryview, kind: str) -> int:
    """The orientation of the image in ``data``, 1 to 8; 1 where none is said. ``kind`` is jpg, png, webp or gif."""
    view = memoryview(data)
    if kind == "jpg":
        return _of_tiff(_jpeg_exif(view))
    if kind == "webp":
        return _of_tiff(_webp_exif(view))
    return _of_tiff(_png_exif(view)) if kind == "png" else 1


def without_text(data: bytes | bytearray | memoryview) -> bytes:
    """The PNG in ``data`` without the chunks that are about the image and no part of its pixels: texts, profile, EXIF.

    A decoder that refuses one of them would refuse good pixels. Bytes that are no PNG come back as they are.
    """
    view, kept, at = memoryview(data), [], 0
    for kind, begin, end in _chunks(view):
        if kind in _TEXTS:
            kept.append(view[at:begin])
            at = end
    return b"".join([*kept, view[at:]])


def _jpeg_exif(data: memoryview) -> bytes:
    found: list[bytes] = []
    at = 2
    for _ in range(_MOST_PARTS):
        if at + 4 > len(data) or data[at] != 0xFF:
            break
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            run = bytes(data[at : at + 4096])
            at += len(run) - len(run.lstrip(b"\xff")) - 1 or 1
            continue
        if marker == _TEM or _FIRST_STANDALONE <= marker <= _LAST_STANDALONE:
            at += 2
            continue
        if marker in {_SOS, _EOI}:
            break
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if length < 2:
            break
        if marker == _APP1 and data[at + 4 : at + 4 + len(_EXIF)] == _EXIF:
            segment = bytes(data[at + 4 : at + 2 + length])
            found.append(segment[len(_EXIF) :] if found else segment)
        at += 2 + length
    return b"".join(found)


def _webp_exif(data: memoryview) -> bytes:
    at = 12
    for _ in range(_MOST_PARTS):
        if at + 8 > len(data):
            break
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        if bytes(data[at : at + 4]) == b"EXIF":
            return bytes(data[at + 8 : min(at + 8 + length, at + 8 + _PROFILE_BYTES)])
        at += 8 + length + length % 2
    return b""


def _png_exif(data: memoryview) -> bytes:
    profile = b""
    for kind, begin, end in _chunks(data):
        content = data[begin + 8 : end - 4]
        if kind == b"eXIf":
            return bytes(content[:_PROFILE_BYTES])
        if kind in {b"tEXt", b"zTXt"} and not profile:
            profile = _raw_profile(bytes(content[:_PROFILE_BYTES]), is_compressed=kind == b"zTXt")
    return profile


def _chunks(data: memoryview) -> list[tuple[bytes, int, int]]:
    """(kind, begin, end) of the chunks of a PNG that are whole."""
    found, at = [], _PNG_SIGNATURE_BYTES
    for _ in range(_MOST_PARTS):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if at + 12 > len(data) or end > len(data):
            break
        found.append((bytes(data[at + 4 : at + 8]), at, end))
        at = end
    return found


def _raw_profile(content: bytes, *, is_compressed: bool) -> bytes:
    """EXIF that ImageMagick wrote as text: its kind, its length and its bytes in hexadecimal, a line each."""
    keyword, _, text = content.partition(b"\0")
    if keyword != b"Raw profile type exif":
        return b""
    try:
        if is_compressed:
            text = zlib.decompressobj().decompress(text[1:], _PROFILE_BYTES)
        return binascii.unhexlify(b"".join(text.split()[2:]))
    except (zlib.error, ValueError):
        return b""


def _of_tiff(exif: bytes) -> int:
    while exif.startswith(_EXIF):
        exif = exif[len(_EXIF) :]
    order = _BYTE_ORDERS.get(exif[:4])
    if order is None or len(exif) < 8:
        return 1
    at = struct.unpack_from(f"{order}I", exif, 4)[0]
    if at + 2 > len(exif):
        return 1
    found = 1
    for _ in range(min(struct.unpack_from(f"{order}H", exif, at)[0], _MOST_ENTRIES)):
        if at + 14 > len(exif):  # cut off: what came before counts
            break
        tag, type_, count = struct.unpack_from(f"{order}HHI", exif, at + 2)
        if tag == _ORIENTATION:
            number = struct.unpack_from(order + _NUMBERS[type_], exif, at + 10)[0] if type_ in _NUMBERS else 0
            found = number if count == 1 and 1 <= number <= _LAST else 1
        at += 12
    return found
