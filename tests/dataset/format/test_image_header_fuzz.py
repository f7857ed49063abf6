"""Mutated files: the header is Pillow's wherever Pillow takes the file, and nothing raises."""

import contextlib
import io
import struct
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from stoker.dataset.decode import decode
from stoker.dataset.format.exif import exif_orientation
from stoker.dataset.format.image_header import image_kind, read_header
from stoker.dataset.format.jpeg import read_marks
from stoker.dataset.format.parts import without_metadata
from stoker.dataset.undecodable import UndecodableImage

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (18, 26, 3), dtype=np.uint8))
EXIF = Image.Exif()
EXIF[0x10F], EXIF[0x112], EXIF[0x11A] = "a maker", 6, 72.0


def saved(kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    PICTURE.save(file, kind, **options)
    return file.getvalue()


FILES = [
    saved("JPEG", exif=EXIF, icc_profile=bytes(300), comment=b"a word"),
    saved("JPEG", exif=EXIF, progressive=True),
    saved("JPEG", restart_marker_blocks=2),
    saved("PNG", exif=EXIF, icc_profile=bytes(300), dpi=(72, 72)),
    saved("PNG"),
    saved("WEBP", exif=EXIF, icc_profile=bytes(300)),
    saved("WEBP"),
    saved("WEBP", lossless=True),
    saved("GIF", comment=b"a word" * 100),
    saved("BMP"),
]


def pillow(data: bytes) -> tuple[tuple[int, int], int] | None:
    """(size, orientation) as Pillow reads them, None if it cannot decode the image."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data)) as image:
                image.load()
                size, block = image.size, image.info.get("exif")
        except Exception:
            return None
        return size, pillow_orientation(block)


def pillow_orientation(block: bytes | None) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            exif = Image.Exif()
            exif.load(block or b"")
            found = exif.get(0x112, 1)
        except Exception:
            return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


INSERTED = [b"\xff", b"\0", b"\xff\xe1\0\2", b"Exif\0\0"]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A file with bytes changed, cut out, repeated or put in, most of them in its header."""
    data = bytearray(draw(st.sampled_from(FILES)))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, min(len(data) - 1, 400))) | st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.sampled_from(["change", "cut", "repeat", "insert", "truncate"]))
        length = draw(st.integers(1, 40))
        if kind == "change":
            data[place : place + 1] = draw(st.binary(min_size=1, max_size=4))
        elif kind == "cut":
            del data[place : place + length]
        elif kind == "repeat":
            data[place:place] = data[place : place + length]
        elif kind == "insert":
            data[place:place] = draw(st.sampled_from(INSERTED) | st.binary(max_size=8))
        elif draw(st.booleans()):
            del data[place:]
    return bytes(data)


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(mutated())
def test_the_header_of_a_mutated_file_is_pillows_and_nothing_raises(data: bytes) -> None:
    header, by_pillow = read_header(data), pillow(data)
    read_marks(data)
    without_metadata(data, image_kind(data) or "")
    upright = None
    with contextlib.suppress(UndecodableImage):
        upright = tuple(decode(data).shape)

    if by_pillow is not None and image_kind(data) is not None:
        assert header is not None
        assert ((header.width, header.height), header.orientation) == by_pillow
    if upright is not None:
        assert header is not None
        size = header.width, header.height
        assert upright == (3, *(size if header.orientation >= 5 else reversed(size)))


TAGS = st.sampled_from([0x112, 0x112, 0x112, 0x10F, 0x11A, 0x8769]) | st.integers(0, 2**16 - 1)
NUMBERS = st.integers(0, 9) | st.integers(0, 200) | st.integers(0, 2**32 - 1)


@st.composite
def exif_blocks(draw: st.DrawFn) -> bytes:
    """A TIFF directory of any types, counts, offsets and lengths, in either order of bytes, whole or not."""
    order = draw(st.sampled_from("<>"))

    def pack(form: str, *values: int) -> bytes:
        return struct.pack(order + form, *values)

    heads = {"<": [b"II*\0", b"II\0*", b"II+\0"], ">": [b"MM\0*", b"MM*\0", b"MM\0+"]}
    entries = draw(st.lists(st.tuples(TAGS, st.integers(0, 17), st.integers(0, 3) | NUMBERS), max_size=6))
    body = b""
    for tag, kind, count in entries:
        inline = draw(st.booleans())
        value = pack("HH", draw(st.integers(0, 9)), 0) if inline else pack("L", draw(NUMBERS))
        body += pack("HHL", tag, kind, count) + value
    told = draw(st.sampled_from([len(entries), len(entries) + 1, 2**16 - 1, 0]) | st.just(len(entries)))
    offset = draw(st.sampled_from([8, 8, 8, 10, 0, 2**32 - 1]))
    tail = draw(st.binary(max_size=80))
    whole = draw(st.sampled_from(heads[order])) + pack("L", offset) + pack("H", told) + body + pack("L", 0) + tail
    prefix = draw(st.sampled_from([b"", b"Exif\0\0", b"Exif\0\0" * 2, b"Exif\0\0" * 3, b"Exif\0\xff", b"exif\0\0"]))
    return prefix + whole[: draw(st.sampled_from([len(whole)] * 5 + [len(whole) // 2, 14, 6, 1]))]


@settings(max_examples=600, deadline=None)
@given(exif_blocks())
def test_the_orientation_of_any_directory_is_pillows(block: bytes) -> None:
    assert (exif_orientation(block) or 1) == pillow_orientation(block)


@settings(max_examples=300, deadline=None)
@given(block=exif_blocks(), split=st.integers(0, 60), is_first=st.booleans(), words=st.binary(max_size=20))
@pytest.mark.parametrize("padding", [b"", b"\xff\xff\xff"])
def test_the_orientation_of_any_segments_is_pillows(
    block: bytes, split: int, is_first: bool, words: bytes, padding: bytes
) -> None:
    plain = FILES[2]
    pieces = [b"Exif\0\0" + block[:split], b"Exif\0\0" + block[split:]]
    junk = [b"http://ns.adobe.com/xap/1.0/\0" + words, words]
    put = [*junk, *pieces] if is_first else [pieces[0], *junk, pieces[1]]
    segments = b"".join(padding + b"\xff\xe1" + struct.pack(">H", len(one) + 2) + one for one in put)
    data = plain[:20] + segments + plain[20:]

    header = read_header(data)

    assert header is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(data)) as image:
            assert header.orientation == pillow_orientation(image.info["exif"])
