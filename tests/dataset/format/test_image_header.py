"""One reader decides how an image is turned: in training, evaluation, preparation and serving alike."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, PngImagePlugin

from stoker.dataset.decode import decode
from stoker.dataset.decode.image import image_kind, image_size
from stoker.dataset.format.image_header import exif_orientation, without_text
from stoker.dataset.prepare import Options
from stoker.dataset.prepare.images import store_image

WIDE, HIGH = 48, 32
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (HIGH // 8, WIDE // 8, 3), np.uint8)).resize(
    (WIDE, HIGH)
)


def saved(kind: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    PICTURE.save(file, kind, **options)
    return file.getvalue()


def tiff(orientation: int, *, order: str = "<", type_: int = 3, count: int = 1, before: bytes = b"") -> bytes:
    """A TIFF header with an IFD of this one tag, after the entries ``before``."""
    value = struct.pack(order + {1: "B", 3: "H", 4: "I", 5: "I", 7: "B", 8: "h", 9: "i"}[type_], orientation)
    entry = struct.pack(f"{order}HHI", 0x0112, type_, count) + value.ljust(4, b"\0")
    head = b"II*\0" if order == "<" else b"MM\0*"
    entries = before + entry
    return head + struct.pack(f"{order}IH", 8, len(entries) // 12) + entries + bytes(4)


def app1(content: bytes) -> bytes:
    return b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content


def jpeg(*segments: bytes) -> bytes:
    """The picture with ``segments`` behind the JFIF segment, where cameras and editors put theirs."""
    plain = saved()
    return plain[:20] + b"".join(segments) + plain[20:]


XMP = app1(b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta/>")
EXIF = b"Exif\0\0"
TURNED = {
    "xmp before exif": jpeg(XMP, app1(EXIF + tiff(6))),
    "a big-endian LONG": jpeg(app1(EXIF + tiff(6, order=">", type_=4))),
    "a little-endian LONG": jpeg(app1(EXIF + tiff(6, type_=4))),
    "a signed SHORT": jpeg(app1(EXIF + tiff(6, order=">", type_=8))),
    "the prefix twice": jpeg(app1(EXIF + EXIF + tiff(6))),
    "a junk APP1 first": jpeg(app1(b"junk"), app1(EXIF + tiff(6))),
    "an empty APP1 first": jpeg(app1(b""), app1(EXIF + tiff(6))),
    "cut off after the tag": jpeg(app1(EXIF + tiff(6)[:-4])),
    "in two segments": jpeg(app1(EXIF + tiff(6)[:15]), app1(EXIF + tiff(6)[15:])),
    "fill bytes": jpeg(b"\xff" * 7 + app1(EXIF + tiff(6))),
    "png": saved("PNG", exif=tiff(6)),
    "webp": saved("WEBP", exif=EXIF + tiff(6)),
}
UPRIGHT = {
    "a rational": jpeg(app1(EXIF + tiff(6, type_=5))),
    "a BYTE": jpeg(app1(EXIF + tiff(6, type_=1))),
    "undefined": jpeg(app1(EXIF + tiff(6, type_=7))),
    "two numbers": jpeg(app1(EXIF + tiff(6, count=2))),
    "no number": jpeg(app1(EXIF + tiff(6, count=0))),
    "0": jpeg(app1(EXIF + tiff(0))),
    "9": jpeg(app1(EXIF + tiff(9))),
    "an odd pad byte": jpeg(app1(b"Exif\0\xff" + tiff(6))),
    "cut off before the tag": jpeg(app1(EXIF + tiff(6)[:14])),
    "an IFD outside": jpeg(app1(EXIF + b"II*\0" + struct.pack("<I", 2**31) + tiff(6)[8:])),
    "no TIFF": jpeg(app1(EXIF + b"garbage that is long enough")),
    "after the scan": saved() + app1(EXIF + tiff(6)),
}
METADATA = pytest.mark.filterwarnings(
    "ignore:.*EXIF:UserWarning", "ignore:Truncated File Read", "ignore:Metadata Warning"
)


def by_pillow(data: bytes) -> torch.Tensor:
    with Image.open(io.BytesIO(data)) as image:
        return torch.from_numpy(np.array(ImageOps.exif_transpose(image).convert("RGB"))).permute(2, 0, 1)


@METADATA
@pytest.mark.parametrize("name", TURNED)
def test_an_image_is_turned_as_pillow_turns_it(name: str) -> None:
    data = TURNED[name]
    assert exif_orientation(data, image_kind(data)) == 6
    assert decode(data).shape == (3, WIDE, HIGH)
    if name != "an empty APP1 first":
        assert (decode(data).int() - by_pillow(data).int()).abs().max() <= 2  # libjpeg-turbo of two versions
    stored = store_image(data, Options())
    assert stored.orientation == 6
    assert torch.equal(decode(stored.data), decode(data)), "evaluation sees what was prepared"


@METADATA
@pytest.mark.parametrize("name", UPRIGHT)
def test_an_orientation_that_is_none_leaves_the_image_upright(name: str) -> None:
    data = UPRIGHT[name]
    assert exif_orientation(data, "jpg") == 1
    assert decode(data).shape == (3, HIGH, WIDE)
    assert store_image(data, Options()).orientation == 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_each_orientation_turns_as_pillow_does(kind: str, orientation: int) -> None:
    data = saved(kind, exif=EXIF + tiff(orientation))
    assert exif_orientation(data, image_kind(data)) == orientation
    expected = by_pillow(data)
    assert decode(data).shape == expected.shape
    assert (decode(data).int() - expected.int()).abs().max() <= 2


def test_a_tag_of_text_where_a_number_belongs_is_no_error() -> None:
    resolution = struct.pack("<HHI", 0x011A, 2, 3) + b"72\0\0"
    data = saved("WEBP", exif=EXIF + tiff(6, before=resolution))
    assert decode(data).shape == (3, WIDE, HIGH)
    assert store_image(data, Options()).orientation == 6


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


HUGE = b"\0\0" + zlib.compress(b"x" * 2**21)


@pytest.mark.parametrize(
    "metadata",
    [
        chunk(b"zTXt", b"Comment" + HUGE),
        chunk(b"iTXt", b"Comment\0\1\0\0\0" + HUGE[2:]),
        chunk(b"iCCP", b"profile" + HUGE),
        chunk(b"tEXt", b"Comment\0" + b"x" * 2**21),
        chunk(b"eXIf", b"nonsense"),
        chunk(b"zTXt", b"Comment\0\0not compressed"),
        chunk(b"tEXt", b""),
    ],
)
def test_metadata_does_not_decide_over_pixels(metadata: bytes) -> None:
    plain = saved("PNG")
    data = plain[:33] + metadata + plain[33:]
    assert image_size(data) == (WIDE, HIGH)
    assert torch.equal(decode(data), decode(plain))
    assert store_image(data, Options()).data == data
    assert without_text(data) == plain


def test_exif_that_imagemagick_wrote_as_text_turns_too() -> None:
    exif = EXIF + tiff(6)
    text = f"\nexif\n{len(exif):8d}\n{exif.hex()}\n"
    for compresses in (True, False):
        info = PngImagePlugin.PngInfo()
        info.add_text("Raw profile type exif", text, zip=compresses)
        data = saved("PNG", pnginfo=info)
        assert decode(data).shape == by_pillow(data).shape == (3, WIDE, HIGH)


@METADATA
@given(st.sampled_from([*TURNED.values(), *UPRIGHT.values()]), st.data())
@settings(max_examples=400, deadline=None)
def test_damage_is_never_an_error_of_the_reader(data: bytes, draw: st.DataObject) -> None:
    damaged = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 4))):
        damaged[draw.draw(st.integers(2, min(len(data) - 1, 120)))] = draw.draw(st.integers(0, 255))
    cut = bytes(damaged[: draw.draw(st.integers(0, len(damaged)))])
    for kind in ("jpg", "png", "webp", "gif"):
        assert 1 <= exif_orientation(cut, kind) <= 8
    without_text(cut)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("jpg", b"\xff\xd8" + b"\xff" * 2**25),
        ("jpg", b"\xff\xd8" + b"\xff\xe0\0\2" * 2**21),
        ("jpg", b"\xff\xd8" + b"\xff\xd0" * 2**22),
        ("png", saved("PNG")[:33] + chunk(b"tEXt", b"") * 2**19),
        ("webp", saved("WEBP")[:12] + b"ABCD\0\0\0\0" * 2**20),
        ("jpg", jpeg(app1(EXIF + b"II*\0" + struct.pack("<IH", 8, 65535) + bytes(65000) + tiff(6)[10:]))),
    ],
)
def test_a_walk_over_millions_of_parts_ends_after_some_thousands(kind: str, data: bytes) -> None:
    exif = {"jpg": app1(EXIF + tiff(6)), "png": chunk(b"eXIf", tiff(6)), "webp": b"EXIF\x1e\0\0\0" + tiff(6)}[kind]
    assert exif_orientation(data + exif, kind) == 1
    assert without_text(data)


def test_it_is_read_in_one_place() -> None:
    package = Path(__file__).parents[3]
    readers = [
        path.name
        for folder in ("platform", "serve")
        for path in (package / folder).rglob("*.py")
        if "getexif" in path.read_text() or "exif_transpose" in path.read_text()
    ]
    assert readers == []
