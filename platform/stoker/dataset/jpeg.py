"""Cutting a JPEG without decoding it: the part that a crop needs, as a small JPEG of its own.

A baseline JPEG whose restart markers stand every k MCUs (minimum coded units), k a divisor of the MCUs of a row, falls
into intervals that can be decoded alone: prediction begins anew at each marker (ITU-T T.81, section E.1.4). For a
crop, take the intervals that it covers, number their markers anew, and put them under the original header with a
smaller size: a valid JPEG of the crop and its surroundings, which any decoder decodes to the very same pixels.

    header │ intervals of MCU row 0 │ row 1 │ …          header' │ covered intervals of rows r0 to r1 │ EOI
           └ k MCUs ┘                              ─▶

``MARGIN`` pixels around the crop are kept, because a decoder that interpolates subsampled chroma looks at neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

__all__ = ["MARGIN", "Box", "Marks", "crop_jpeg", "read_marks"]

Box = tuple[int, int, int, int]
"""left, top, width, height in pixels"""

MARGIN = 4
"""pixels; twice what libjpeg's triangle filter looks past a crop (one chroma sample, two pixels)"""

_RST0, _EOI, _SOS, _DRI = 0xD0, 0xD9, 0xDA, 0xDD
_RST_CYCLE = np.arange(0xD0, 0xD8, dtype=np.uint8)
_SEQUENTIAL = frozenset({0xC0, 0xC1})
"""frames of baseline and extended sequential Huffman coding"""
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""all frames, progressive, lossless and arithmetic ones too; DHT, JPG and DAC share their range"""
_BLOCK = 8
_LONGEST_INTERVAL = 2**16 - 1


@dataclass(frozen=True)
class Marks:
    """Where the intervals of a JPEG lie.

    ``width``, ``height``: of the image in pixels. ``frame``: offset of its frame header (SOF). ``scan``: offset of the
    first interval. ``mcu_width``, ``mcu_height``: of an MCU in pixels. ``interval``: MCUs of an interval, a divisor of
    a row's. ``lengths``: uint16 [t], bytes of each interval, the marker that ends it included; together they reach to
    the end of the image (EOI).
    """

    width: int
    height: int
    frame: int
    scan: int
    mcu_width: int
    mcu_height: int
    interval: int
    lengths: NDArray[np.uint16]

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """int64 [t + 1]: where each interval begins, and where the last one ends."""
        starts = np.empty(len(self.lengths) + 1, np.int64)
        starts[0] = self.scan
        np.cumsum(self.lengths, dtype=np.int64, out=starts[1:])
        starts[1:] += self.scan
        return starts


def read_marks(data: bytes | memoryview) -> Marks | None:
    """The marks of the JPEG in ``data``, or None when it cannot be cut.

    It can when it is baseline or extended sequential Huffman with one scan, with restart intervals of a divisor of a
    row's MCUs, none of more than 65,535 bytes, every marker in its place. Bytes behind the image's end are not looked
    at. Costs one pass over the bytes, so it belongs into the preparation of a data set.
    """
    header = _header(memoryview(data))
    if header is None:
        return None
    width, height, frame, scan, mcu_width, mcu_height, interval = header
    columns, rows = -(-width // mcu_width), -(-height // mcu_height)
    if not interval or columns % interval:
        return None
    view = np.frombuffer(data, np.uint8)
    at = np.flatnonzero(view[scan:-1] == 0xFF) + scan
    kinds = view[at + 1]
    markers = at[(kinds != 0) & (kinds != 0xFF)]
    expected = rows * columns // interval
    if len(markers) < expected:
        return None
    numbers = view[markers[:expected] + 1]
    wanted = _RST0 + (np.arange(expected) & 7)
    wanted[-1] = _EOI
    lengths = np.diff(markers[:expected] + 2, prepend=scan)
    if (numbers != wanted).any() or lengths.max() > _LONGEST_INTERVAL:
        return None
    return Marks(width, height, frame, scan, mcu_width, mcu_height, interval, lengths.astype(np.uint16))


def crop_jpeg(data: bytes | memoryview, marks: Marks, box: Box) -> tuple[bytearray, Box]:
    """(a JPEG that holds the crop ``box`` and at least a margin around it, the crop's box in it).

    ``box`` lies within the image. Nothing is decoded: bytes are copied once.
    """
    left, top, width, height = box
    span, mcu_height, starts = marks.interval * marks.mcu_width, marks.mcu_height, marks.starts
    per_row, rows = -(-marks.width // span), -(-marks.height // mcu_height)
    first = max(0, left - MARGIN) // span
    stop = min(per_row, -(-(left + width + MARGIN) // span))
    top_row = max(0, top - MARGIN) // mcu_height
    stop_row = min(rows, -(-(top + height + MARGIN) // mcu_height))
    # [rows, intervals + 1]: where the covered intervals of each row begin, and where the last of them ends
    edges = starts[np.arange(top_row * per_row, stop_row * per_row, per_row)[:, None] + np.arange(first, stop + 1)]
    begin, end = edges[:, 0], edges[:, -1]
    view = memoryview(data)
    cut = bytearray().join(
        [view[: marks.scan], *(view[a:b] for a, b in zip(begin.tolist(), end.tolist(), strict=True))]
    )
    cut_width = min(marks.width, stop * span) - first * span
    cut_height = min(marks.height, stop_row * mcu_height) - top_row * mcu_height
    cut[marks.frame + 5 : marks.frame + 9] = cut_height.to_bytes(2, "big") + cut_width.to_bytes(2, "big")
    moved = begin.copy()
    moved[0] -= marks.scan
    moved[1:] -= marks.scan + np.cumsum(end - begin)[:-1]
    ends = (edges[:, 1:] - moved[:, None]).ravel()
    pixels = np.frombuffer(cut, np.uint8)
    pixels[ends - 2] = 0xFF
    pixels[ends - 1] = _RST_CYCLE[np.arange(len(ends)) & 7]
    pixels[-1] = _EOI
    return cut, (left - first * span, top - top_row * mcu_height, width, height)


def _header(data: memoryview) -> tuple[int, int, int, int, int, int, int] | None:
    """(width, height, frame, scan, MCU width, MCU height, restart interval), or None if it is not of our kind."""
    at, interval, components = 2, 0, 0
    frame: tuple[int, int, int, int, int] | None = None
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill bytes may stand before any marker (T.81, B.1.1.2)
            at += 1
            continue
        after = at + 2 + (data[at + 2] << 8 | data[at + 3])
        if marker == _SOS:
            if frame is None or data[at + 4] != components:
                break  # one of several scans
            width, height, begins, mcu_width, mcu_height = frame
            return width, height, begins, after, mcu_width, mcu_height, interval
        if marker in _FRAMES:
            frame, components = _frame(data, at), data[at + 9]
            if frame is None:
                break
        elif marker == _DRI:
            interval = data[at + 4] << 8 | data[at + 5]
        at = after
    return None


def _frame(data: memoryview, at: int) -> tuple[int, int, int, int, int] | None:
    """(width, height, ``at``, MCU width, MCU height) of the frame header at ``at``, or None if it is no such."""
    components = data[at + 9]
    height, width = data[at + 5] << 8 | data[at + 6], data[at + 7] << 8 | data[at + 8]
    if data[at + 1] not in _SEQUENTIAL or data[at + 4] != _BLOCK or components not in {1, 3, 4} or not width * height:
        return None
    if components == 1:  # a scan of one component has MCUs of one block, whatever its factors say (T.81, A.2.2)
        return width, height, at, _BLOCK, _BLOCK
    factors = [data[at + 11 + 3 * c] for c in range(components)]
    return width, height, at, _BLOCK * max(f >> 4 for f in factors), _BLOCK * max(f & 15 for f in factors)
