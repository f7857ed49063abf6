"""Cut a crop out of a JPEG without decoding it, as a small JPEG of its own.

A baseline JPEG with a restart marker every k MCUs (minimum coded units), k a divisor of the MCUs of a row, consists
of intervals that can be decoded alone: prediction restarts at each marker (ITU-T T.81, section E.1.4). For a
crop, take the intervals that it covers, renumber their markers, and put them behind the original header with a
smaller size: a valid JPEG of the crop and its surroundings, which any decoder decodes to the very same pixels.

    header │ intervals of MCU row 0 │ row 1 │ …          header' │ covered intervals of rows r0 to r1 │ EOI
           └ k MCUs ┘                              ─▶

``MARGIN`` pixels around the crop are kept, because a decoder that interpolates subsampled chroma looks at neighbours.

The intervals are found by scanning the bytes for markers, or read from a table that ``with_table`` put
before the scan: a segment APP9 of ``stoker:intervals``, a zero byte, and the bytes of each interval as unsigned 16-bit
little-endian integers. Decoders skip it. It is stored in the image, so that a shard's index stays small
(the table takes ten times the space of the rest of an index).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from stoker.dataset.format.image_header import MOST_PIXELS
from stoker.dataset.format.parts import EOI, FRAMES, SEQUENTIAL, SOS, jpeg_segments, mcu_factors

__all__ = ["MARGIN", "Box", "Marks", "crop_jpeg", "read_marks", "with_table"]

Box = tuple[int, int, int, int]
"""left, top, width, height in pixels"""

MARGIN = 4
"""pixels; twice what libjpeg's triangle filter looks past a crop (one chroma sample, two pixels)"""

_RST0, _DRI, _APP9 = 0xD0, 0xDD, 0xE9
_TABLE = b"stoker:intervals\0"
_LONGEST_SEGMENT = _LONGEST_INTERVAL = 2**16 - 1
_RST_CYCLE = np.arange(0xD0, 0xD8, dtype=np.uint8)
_BLOCK = 8


@dataclass(frozen=True)
class Marks:
    """How a JPEG can be cut.

    ``width``, ``height``: of the image in pixels. ``frame``: offset of its frame header (SOF). ``scan``: offset of the
    first interval. ``mcu_width``, ``mcu_height``: of an MCU in pixels. ``interval``: MCUs of an interval, a divisor of
    a row's. ``table``: offset of the table of the intervals' lengths, 0 if there is none.
    """

    width: int
    height: int
    frame: int
    scan: int
    mcu_width: int
    mcu_height: int
    interval: int
    table: int = 0

    @property
    def per_row(self) -> int:
        """Intervals of a row of MCUs."""
        return -(-self.width // (self.interval * self.mcu_width))

    @property
    def rows(self) -> int:
        """Rows of MCUs."""
        return -(-self.height // self.mcu_height)


def read_marks(data: bytes | memoryview) -> Marks | None:
    """The marks of the JPEG in ``data``, or None when it cannot be cut.

    It can when it is baseline or extended sequential Huffman with one scan, with restart intervals of a divisor of a
    row's MCUs and every marker in its place. Bytes after the end of the image are ignored.
    """
    marks = _header(memoryview(data))
    if marks is None or not marks.interval or -(-marks.width // marks.mcu_width) % marks.interval:
        return None
    view = np.frombuffer(data, np.uint8)
    markers, expected = _markers(view, marks.scan), marks.rows * marks.per_row
    if len(markers) < expected:
        return None
    wanted = _RST0 + (np.arange(expected) & 7)
    wanted[-1] = EOI
    if (view[markers[:expected] + 1] != wanted).any():
        return None
    if marks.table and not np.array_equal(_starts(data, marks)[1:], markers[:expected] + 2):
        return replace(marks, table=0)  # a program rewrote the image and kept the table of the original
    return marks


def with_table(data: bytes) -> bytes:
    """The JPEG in ``data`` with a new table of its intervals; unchanged if it cannot be cut, or if the table would not
    fit in a segment."""
    found = _header(memoryview(data))
    if found is None:
        return data
    for begin, end in reversed(_segments(memoryview(data))):
        if _is_table(data, begin):
            data = data[:begin] + data[end:]
    marks = read_marks(data)
    if marks is None:
        return data
    lengths = np.diff(_starts(data, marks))
    size = 2 + len(_TABLE) + 2 * len(lengths)
    if size > _LONGEST_SEGMENT or lengths.max() > _LONGEST_INTERVAL:
        return data
    at = _segments(memoryview(data))[-1][0]  # before the scan's header, so that no other offset moves
    segment = bytes([0xFF, _APP9]) + size.to_bytes(2, "big") + _TABLE + lengths.astype("<u2").tobytes()
    return data[:at] + segment + data[at:]


def _markers(view: NDArray[np.uint8], start: int) -> NDArray[np.int64]:
    """Offsets of markers in the entropy-coded bytes from ``start`` on, in which 0xFF otherwise precedes only
    0 (a stuffed byte) and 0xFF (fill bytes): T.81, B.1.1.5."""
    at = np.flatnonzero(view[start:-1] == 0xFF) + start
    kinds = view[at + 1]
    return at[(kinds != 0) & (kinds != 0xFF)]


def crop_jpeg(data: bytes | memoryview, marks: Marks, box: Box) -> tuple[bytearray, Box]:
    """(a JPEG that holds the crop ``box`` and at least a margin around it, the crop's box in it).

    ``box`` is within the image. Nothing is decoded: bytes are copied once.

    Raises:
        ValueError: the bytes are not those that ``marks`` were read from, or it would have more than ``MOST_PIXELS``.
    """
    left, top, width, height = box
    span, mcu_height, per_row = marks.interval * marks.mcu_width, marks.mcu_height, marks.per_row
    first = max(0, left - MARGIN) // span
    stop = min(per_row, -(-(left + width + MARGIN) // span))
    top_row = max(0, top - MARGIN) // mcu_height
    stop_row = min(marks.rows, -(-(top + height + MARGIN) // mcu_height))
    cut_width = min(marks.width, stop * span) - first * span
    cut_height = min(marks.height, stop_row * mcu_height) - top_row * mcu_height
    if cut_width * cut_height > MOST_PIXELS:
        raise ValueError(f"it is {cut_width} by {cut_height} pixels, more than the {MOST_PIXELS:,} that are decoded")
    starts = _starts(data, marks)
    # [rows, intervals + 1]: where the covered intervals of each row begin, and where the last of them ends
    edges = starts[np.arange(top_row * per_row, stop_row * per_row, per_row)[:, None] + np.arange(first, stop + 1)]
    begin, end = edges[:, 0], edges[:, -1]
    view = memoryview(data)
    cut = bytearray().join(
        [view[: marks.scan], *(view[a:b] for a, b in zip(begin.tolist(), end.tolist(), strict=True))]
    )
    cut[marks.frame + 5 : marks.frame + 9] = cut_height.to_bytes(2, "big") + cut_width.to_bytes(2, "big")
    moved = begin.copy()
    moved[0] -= marks.scan
    moved[1:] -= marks.scan + np.cumsum(end - begin)[:-1]
    ends = (edges[:, 1:] - moved[:, None]).ravel()
    pixels = np.frombuffer(cut, np.uint8)
    pixels[ends - 2] = 0xFF
    pixels[ends - 1] = _RST_CYCLE[np.arange(len(ends)) & 7]
    pixels[-1] = EOI
    return cut, (left - first * span, top - top_row * mcu_height, width, height)


def _starts(data: bytes | memoryview, marks: Marks) -> NDArray[np.int64]:
    """int64 [t + 1]: where each interval begins, and where the last one ends, its marker included."""
    count = marks.rows * marks.per_row
    starts = np.empty(count + 1, np.int64)
    starts[0] = marks.scan
    if marks.table:
        np.cumsum(np.frombuffer(data, "<u2", count, marks.table), dtype=np.int64, out=starts[1:])
        starts[1:] += marks.scan
        return starts
    markers = _markers(np.frombuffer(data, np.uint8), marks.scan)
    if len(markers) < count:
        raise ValueError(f"{len(markers)} markers found where the index promises {count}")
    starts[1:] = markers[:count] + 2
    return starts


def _segments(data: memoryview) -> list[tuple[int, int]]:
    """(begin, end) of each marker segment between SOI and the first scan's data, the scan's header the last.

    Ends at junk between segments, which decoders pass over, and where the file is truncated.
    """
    found: list[tuple[int, int]] = []
    stop = 2
    for marker, begin, end in jpeg_segments(data):
        # fill bytes may precede any marker (T.81, B.1.1.2)
        if end > len(data) or bytes(data[stop:begin]).strip(b"\xff"):
            break
        found.append((begin, end))
        if marker == SOS:
            break
        stop = end
    return found


def _is_table(data: bytes | memoryview, begin: int) -> bool:
    return data[begin + 1] == _APP9 and bytes(data[begin + 4 : begin + 4 + len(_TABLE)]) == _TABLE


def _header(data: memoryview) -> Marks | None:
    """The marks by the header alone, or None if it cannot be cut. A table is trusted if its size fits."""
    interval, table, room = 0, 0, 0
    frame: tuple[int, int, int, int, int] | None = None
    for begin, after in _segments(data):
        marker, content = data[begin + 1], data[begin + 4 : after]
        if marker == SOS:
            if frame is None or not content or content[0] != data[frame[2] + 9]:
                return None  # one of several scans
            marks = Marks(frame[0], frame[1], frame[2], after, frame[3], frame[4], interval)
            fits = bool(interval) and room == 2 * marks.rows * marks.per_row
            return replace(marks, table=table) if fits else marks
        if marker in FRAMES:
            frame = _frame(content, begin, marker) if frame is None else None  # decoders refuse a second one
            if frame is None:
                return None
        elif marker == _DRI and len(content) >= 2:
            interval = content[0] << 8 | content[1]
        elif _is_table(data, begin):
            table = begin + 4 + len(_TABLE)
            room = after - table
    return None


def _frame(content: memoryview, at: int, marker: int) -> tuple[int, int, int, int, int] | None:
    """(width, height, ``at``, MCU width, MCU height) of the frame header at ``at``, or None if it cannot be cut."""
    if marker not in SEQUENTIAL or len(content) < 6 or content[0] != _BLOCK or content[5] not in {1, 3, 4}:
        return None
    height, width = content[1] << 8 | content[2], content[3] << 8 | content[4]
    factors = mcu_factors(bytes(content))
    return (width, height, at, _BLOCK * factors[0], _BLOCK * factors[1]) if factors and width * height else None
