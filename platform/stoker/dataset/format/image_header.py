"""Read what an image file says about itself: kind, size, orientation, scans. Nothing is decoded.

This one reader decides for preparation, training, evaluation and serving: whatever decodes the pixels decodes them as
they are stored, and they are turned by this header's orientation. It takes the parts of a file as the decoders do (the
first frame header of a JPEG, the canvas of a WebP, the screen and first frame of a GIF), and never raises for what else
a file holds. A server reads headers where every other request waits: it takes milliseconds for any 16 MB, and a header
of more parts than files have, by far, is none.

The orientation is EXIF's, as Pillow reads it (``stoker.dataset.format.exif``). In a PNG without one it is that of
ImageMagick's raw profile, and then XMP's; other kinds' XMP is not followed, as neither libjpeg nor browsers do.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from stoker.dataset.format.exif import UPRIGHT, exif_orientation, profile_exif, unpacked, xmp_orientation
from stoker.dataset.format.parts import (
    EOI,
    FRAMES,
    HEADER_JUNK,
    HEADER_PARTS,
    MOST_PARTS,
    SEQUENTIAL,
    SOS,
    jpeg_segments,
    mcu_factors,
    png_chunks,
)

__all__ = ["MOST_PIXELS", "MOST_SCANS", "ImageHeader", "image_kind", "read_header"]

MOST_PIXELS = 178_956_970
"""of an image of any kind that is prepared or decoded: Pillow's bound too, 512 MiB at 3 bytes each"""
MOST_SCANS = 100
"""of a JPEG that is prepared or decoded. Encoders write some ten. Each costs the file 14 bytes and the decoder a pass
over all pixels, 0.7 ns each: a file of 16 MB could hold ten hours of work"""

_APP1, _APP14 = 0xE1, 0xEE
_EXIF = b"Exif\0\0"
_ADOBE, _ADOBE_TRANSFORM = b"Adobe", 11
_FRAME_BYTES = 6
"""bytes of a frame header's content before those of its components"""
_SIZE_14 = 0x3FFF
_VP8_START = b"\x9d\x01\x2a"
_WEBP_EXIF = 0x08
_WEBP_PARTS = 2000
"""of which EXIF, if the header announces it, may be behind: frames of an animation"""
_MOST_EXIF = 2**20
"""bytes of EXIF that are looked at; a JPEG's segment holds 64 kB"""
_STRIDE = 2**18
_GIF_EXTENSION, _GIF_FRAME, _GIF_END = 0x21, 0x2C, 0x3B
_BLOCK = 8
_LEAST_ROW = 32
_SOS_LITTLE_ENDIAN = 0xDAFF
_MARKER, _LAST_RESTART = 0xFF, 0xD7
_MOST_WALKED = 2**23
_MOST_DENSE = 16
"""of entropy-coded bytes one in some hundred is 0xFF"""


class ImageHeader(NamedTuple):  # made in a quarter of a frozen dataclass's time, for each image that is decoded
    """What an image file says about itself.

    ``kind`` is jpg, png, webp or gif, by the first bytes; ``width`` and ``height`` are in pixels as they are stored,
    before any rotation; ``orientation`` is EXIF's, 1 to 8, 1 for upright; ``scans`` counts those of a JPEG up to
    ``MOST_SCANS`` + 1, and is 1 for other kinds; ``header_bytes`` come before the first encoded pixels.

    Up to ``MOST_SCANS``, ``scans`` also counts pairs of bytes that look like a scan's marker in comments and tables
    after the first scan, and behind the picture; where it would be more by these, it is exact.

    Of a JPEG only: ``components`` is the number of its channels, ``mcu`` the width and height of a minimum coded unit
    in pixels, ``adobe_transform`` what Adobe's segment says about the channels (0: RGB or CMYK), None without one.
    """

    kind: str
    width: int
    height: int
    orientation: int = UPRIGHT
    scans: int = 1
    header_bytes: int = 0
    components: int = 0
    mcu: tuple[int, int] = (_BLOCK, _BLOCK)
    adobe_transform: int | None = None

    @property
    def held_pixels(self) -> int:
        """Pixels that decoding takes the memory of: at least 32 a row, because Pillow holds more than those alone."""
        return max(self.width, _LEAST_ROW) * self.height


def image_kind(data: bytes | bytearray | memoryview) -> str | None:
    """The kind of image by its first bytes, whatever the file's name: jpg, png, webp, gif, or None."""
    start = bytes(data[:12])
    if start.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        return "webp"
    return "gif" if start.startswith((b"GIF87a", b"GIF89a")) else None


def read_header(data: bytes | bytearray | memoryview) -> ImageHeader | None:
    """The header of an image file, or None if it is none of these kinds or does not tell a size above 0 by 0."""
    kind = image_kind(data)
    if kind is None:
        return None
    header = _READERS[kind](memoryview(data))
    return header if header is not None and header.width * header.height else None


def _jpeg(data: memoryview) -> ImageHeader | None:
    blocks: list[memoryview] = []
    frame, frame_marker, transform, scans, header_bytes = b"", 0, None, 1, len(data)
    for marker, begin, end in jpeg_segments(data, most=HEADER_PARTS, most_junk=HEADER_JUNK):
        if marker == SOS:
            header_bytes = min(end, len(data))
            # a first scan that has every component is the only one of a sequential JPEG
            if frame_marker not in SEQUENTIAL or data[begin + 4 : begin + 5] != frame[5:6]:
                scans = _scans(data, begin)
            break
        if marker == _APP1:
            if len(blocks) * 2**16 < _MOST_EXIF and data[begin + 4 : min(end, begin + 10)] == _EXIF:
                blocks.append(data[begin + 10 if blocks else begin + 4 : end])
        elif marker == _APP14:
            if data[begin + 4 : begin + 9] == _ADOBE and min(end, len(data)) - begin - 4 > _ADOBE_TRANSFORM:
                transform = data[begin + 4 + _ADOBE_TRANSFORM]
        elif marker in FRAMES and not frame:
            frame, frame_marker = bytes(data[begin + 4 : end]) if end <= len(data) else b"", marker
    if len(frame) < _FRAME_BYTES:
        return None
    height, width, components = int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big"), frame[5]
    orientation = exif_orientation(b"".join(blocks)) or UPRIGHT
    across, down = mcu_factors(frame) or (1, 1)
    mcu = (_BLOCK * across, _BLOCK * down)
    return ImageHeader("jpg", width, height, orientation, scans, header_bytes, components, mcu, transform)


def _scans(data: memoryview, first: int) -> int:
    """The scans from ``first`` on, by the pairs of bytes that look like one; if these are many, marker by marker."""
    found = 0
    for begin in (first, first + 1):
        pairs = np.frombuffer(data, "<u2", (len(data) - begin) // 2, begin)
        for at in range(0, len(pairs), _STRIDE):
            found += int(np.count_nonzero(pairs[at : at + _STRIDE] == _SOS_LITTLE_ENDIAN))
            if found > MOST_SCANS:
                return _scans_by_markers(data, first)
    return found


def _scans_by_markers(data: memoryview, first: int) -> int:
    """The scans up to the end of the picture, and ``MOST_SCANS`` + 1 if there are more, or more than can be told."""
    found, after = 0, first
    values = np.frombuffer(data, np.uint8)
    for begin in range(first, len(data) - 3, _STRIDE):
        places = np.flatnonzero(values[begin : begin + _STRIDE] == _MARKER) + begin
        if len(places) > _STRIDE // _MOST_DENSE or begin - first > _MOST_WALKED:
            return MOST_SCANS + 1
        kinds = values[np.minimum(places + 1, len(data) - 1)]
        for place, kind in zip(
            places[kinds > _LAST_RESTART].tolist(), kinds[kinds > _LAST_RESTART].tolist(), strict=True
        ):
            if place < after or kind == _MARKER:
                continue
            if kind == EOI or found > MOST_SCANS:
                return found
            found += kind == SOS
            after = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return found


def _png(data: memoryview) -> ImageHeader | None:
    if bytes(data[12:16]) != b"IHDR" or len(data) < 33:
        return None
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    if max(width, height) >= 2**31:  # the largest of the format (PNG 3rd edition, section 7.1)
        return None
    found: dict[bytes, tuple[bytes, memoryview]] = {}
    header_bytes = walked = 0
    for kind, begin, end in png_chunks(data, most=HEADER_PARTS):
        walked += 1
        content = data[begin + 8 : min(end - 4, begin + 8 + _MOST_EXIF)]
        if kind == b"IDAT":
            header_bytes = header_bytes or begin
        elif kind == b"eXIf":
            found[b"exif"] = (kind, content)
        elif kind in {b"tEXt", b"zTXt", b"iTXt"}:
            for name in (b"exif", b"Raw profile type exif", b"XML:com.adobe.xmp"):
                if content[: len(name) + 1] == name + b"\0" and (name != b"exif" or kind == b"tEXt"):
                    found[name] = (kind, content[len(name) + 1 :])  # the last of several counts
    if not header_bytes and walked >= HEADER_PARTS:
        return None
    return ImageHeader("png", width, height, _png_orientation(found), header_bytes=header_bytes or len(data))


def _png_orientation(found: dict[bytes, tuple[bytes, memoryview]]) -> int:
    orientation = None
    if b"exif" in found:
        orientation = exif_orientation(found[b"exif"][1])
    elif b"Raw profile type exif" in found:
        orientation = exif_orientation(profile_exif(_text(*found[b"Raw profile type exif"])))
    if orientation is None and b"XML:com.adobe.xmp" in found:
        orientation = xmp_orientation(_text(*found[b"XML:com.adobe.xmp"]))
    return orientation or UPRIGHT


def _text(kind: bytes, content: memoryview) -> bytes:
    """The text of a chunk, without its keyword (PNG 3rd edition, section 11.3.3); empty if it is damaged."""
    if kind == b"tEXt" or not content:
        return bytes(content)
    if kind == b"zTXt":
        return unpacked(bytes(content[1:])) if content[0] == 0 else b""
    parts = bytes(content[2:]).split(b"\0", 2)  # language, translated keyword, text
    if len(parts) < 3:
        return b""
    return unpacked(parts[2]) if content[0] else parts[2]


def _webp(data: memoryview) -> ImageHeader | None:
    """By the container's specification (RFC 9649) and those of both kinds of its bitstreams (RFC 6386, 9649)."""
    kind = bytes(data[12:16])
    if len(data) < 30:
        return None
    if kind == b"VP8 " and data[23:26] == _VP8_START:
        width, height = (int.from_bytes(data[at : at + 2], "little") & _SIZE_14 for at in (26, 28))
        return ImageHeader("webp", width, height, header_bytes=20)
    if kind == b"VP8L" and data[20] == 0x2F:
        bits = int.from_bytes(data[21:25], "little")
        return ImageHeader("webp", (bits & _SIZE_14) + 1, (bits >> 14 & _SIZE_14) + 1, header_bytes=20)
    if kind != b"VP8X":
        return None
    width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
    stop, at, exif, header_bytes = min(len(data), 8 + _u32(data, 4)), 20 + _padded(_u32(data, 16)), data[:0], 0
    for walked in range(_WEBP_PARTS):
        if at + 8 > stop or (header_bytes and not data[20] & _WEBP_EXIF):
            break
        if walked == HEADER_PARTS and not header_bytes:
            return None
        name, size = bytes(data[at : at + 4]), _u32(data, at + 4)
        if name in {b"VP8 ", b"VP8L", b"ANMF"}:
            header_bytes = header_bytes or at
        elif name == b"EXIF" and data[20] & _WEBP_EXIF:
            exif = exif or data[at + 8 : min(stop, at + 8 + size)]
        at += 8 + _padded(size)
    return ImageHeader("webp", width, height, exif_orientation(exif) or UPRIGHT, header_bytes=header_bytes or len(data))


def _gif(data: memoryview) -> ImageHeader | None:
    """The size is that of the screen, or of the first frame where it reaches beyond (GIF89a, sections 18 and 20)."""
    if len(data) < 13:
        return None
    width, height = int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little")
    at, is_extension = 13 + _palette(data[10]), False
    for _ in range(MOST_PARTS):
        if at >= len(data):
            break
        if is_extension:  # one of its blocks, of which the last is empty
            is_extension, at = data[at] > 0, at + 1 + data[at]
        elif data[at] == _GIF_FRAME and at + 10 <= len(data):
            left, top, across, down = (int.from_bytes(data[at + i : at + i + 2], "little") for i in (1, 3, 5, 7))
            header_bytes = min(len(data), at + 10 + _palette(data[at + 9]))
            return ImageHeader("gif", max(width, left + across), max(height, top + down), header_bytes=header_bytes)
        elif data[at] in {_GIF_FRAME, _GIF_END}:
            break
        else:
            is_extension = data[at] == _GIF_EXTENSION
            at += 1 + is_extension
    return None


def _palette(flags: int) -> int:
    """Bytes of the table of colours that the flags announce."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _padded(size: int) -> int:
    return size + size % 2


def _u32(data: memoryview, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "little")


_READERS = {"jpg": _jpeg, "png": _png, "webp": _webp, "gif": _gif}
