"""The table of a JPEG's intervals: it agrees with a scan of the bytes, and decoders ignore it."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from stoker.dataset.format.jpeg import crop_jpeg, read_marks, with_table


def jpeg(width: int, height: int, interval: int, *, seed: int = 0, **options: object) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90, restart_marker_blocks=interval, **options)
    return file.getvalue()


def pixels(data: bytes) -> bytes:
    return Image.open(io.BytesIO(data)).tobytes()


@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 2), st.data())
def test_crops_by_the_table_are_those_by_a_look_through_the_bytes(
    width: int, height: int, subsampling: int, data: st.DataObject
) -> None:
    image = with_table(jpeg(width, height, 1, subsampling=subsampling))
    marks = read_marks(image)
    assert marks is not None
    assert marks.table
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    box = left, top, data.draw(st.integers(1, width - left)), data.draw(st.integers(1, height - top))
    assert crop_jpeg(image, marks, box) == crop_jpeg(image, replace(marks, table=0), box)


def test_decoders_do_not_see_a_table_and_a_second_one_replaces_it() -> None:
    plain = jpeg(80, 60, 1)
    once = with_table(plain)
    assert pixels(once) == pixels(plain)
    assert with_table(once) == once
    assert len(once) - len(plain) == 4 + len(b"stoker:intervals\0") + 2 * 20


def test_a_table_of_other_bytes_is_not_believed() -> None:
    foreign = with_table(jpeg(80, 60, 1, seed=1))
    own = jpeg(80, 60, 1, seed=2)
    at = foreign.index(b"\xff\xe9")
    segment = foreign[at : foreign.index(b"\xff\xda", at)]
    marks = read_marks(own[: own.index(b"\xff\xda")] + segment + own[own.index(b"\xff\xda") :])
    assert marks is not None
    assert marks.table == 0


@pytest.mark.parametrize("interval", [0, 3])
def test_what_cannot_be_cut_stays_as_it_is(interval: int) -> None:
    data = jpeg(80, 60, interval)
    assert with_table(data) == data
    assert read_marks(data) is None


def test_bytes_that_are_not_those_of_the_index_are_refused() -> None:
    image = jpeg(80, 60, 1)
    marks = read_marks(image)
    assert marks is not None
    with pytest.raises(ValueError, match="markers found where the index promises 20"):
        crop_jpeg(image[:-300], marks, (0, 0, 10, 10))
