"""Cutting JPEGs at the bounds of their format: long intervals, fill bytes, the largest table, and small cuts."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from stoker.dataset.format.jpeg import MARGIN, crop_jpeg, read_marks, with_table


def grey(width: int, height: int, interval: int) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=5, restart_marker_blocks=interval)
    return file.getvalue()


def pixels(data: bytes | bytearray) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(data)))


def test_an_interval_of_more_than_255_units_is_cut() -> None:
    data = grey(2400, 16, 300)
    marks = read_marks(data)
    assert marks is not None
    assert (marks.interval, marks.per_row, marks.rows) == (300, 1, 2)


@pytest.mark.parametrize("fill", [b"\xff", b"\xff\xff\xff"])
def test_fill_bytes_may_precede_any_segment(fill: bytes) -> None:
    data = grey(64, 64, 4)
    for marker in (b"\xff\xdb", b"\xff\xc0", b"\xff\xc4", b"\xff\xdd", b"\xff\xda"):
        at = data.index(marker)
        marks = read_marks(data[:at] + fill + data[at:])
        assert marks is not None
        assert marks.scan == read_marks(data).scan + len(fill)  # type: ignore[union-attr]


def test_a_segment_of_arithmetic_conditions_is_no_frame() -> None:
    data = grey(64, 64, 4)
    assert read_marks(data[:2] + b"\xff\xcc\x00\x04\x00\x00" + data[2:]) is not None


@pytest.mark.parametrize(("width", "has_table"), [(22, True), (23, False)])
def test_the_largest_table_fills_its_segment(width: int, has_table: bool) -> None:
    """19 bytes beside two for each of 32,758 intervals are the 65,535 that a segment's length can say."""
    data = grey(8 * width, 8 * 1489, 1)
    marks = read_marks(with_table(data))
    assert marks is not None
    assert bool(marks.table) is has_table


@pytest.mark.parametrize(("left", "top"), [(0, 0), (100, 100), (196, 197), (190, 190)])
def test_a_cut_has_the_units_that_the_crop_and_its_margin_touch_and_no_more(left: int, top: int) -> None:
    data = grey(200, 200, 1)
    marks = read_marks(data)
    assert marks is not None
    cut, (x, y, width, height) = crop_jpeg(data, marks, (left, top, 3, 2))
    seen = pixels(cut)
    columns = range(max(0, left - MARGIN) // 8, -(-min(200, left + 3 + MARGIN) // 8))
    rows = range(max(0, top - MARGIN) // 8, -(-min(200, top + 2 + MARGIN) // 8))
    assert seen.shape == (8 * len(rows), 8 * len(columns))
    assert (x, y, width, height) == (left - 8 * columns.start, top - 8 * rows.start, 3, 2)
    assert np.array_equal(seen[y : y + 2, x : x + 3], pixels(data)[top : top + 2, left : left + 3])
