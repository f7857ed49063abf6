"""What an image file says about itself, in ordinary, odd and hostile files."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from stoker.dataset.format.exif import exif_orientation
from stoker.dataset.format.image_header import MOST_SCANS, image_kind, read_header
from stoker.dataset.format.jpeg import read_marks
from stoker.dataset.format.parts import (
    HEADER_JUNK,
    HEADER_PARTS,
    MOST_PARTS,
    jpeg_segments,
    png_chunks,
    without_metadata,
)

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (36, 52, 3), dtype=np.uint8))
SIX = Image.Exif()
SIX[0x112] = 6


def saved(kind: str, image: Image.Image = PICTURE, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">L", len(content)) + name + content + struct.pack(">L", zlib.crc32(name + content))


def with_chunk(name: bytes, content: bytes, *, is_last: bool = False) -> bytes:
    data = saved("PNG")
    at = len(data) - 12 if is_last else 33
    return data[:at] + chunk(name, content) + data[at:]


@pytest.mark.parametrize(("kind", "name"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("GIF", "gif")])
def test_a_header_tells_kind_and_size_and_ends_before_the_pixels(kind: str, name: str) -> None:
    header = read_header(saved(kind))
    assert header is not None
    assert (header.kind, header.width, header.height, header.orientation, header.scans) == (name, 52, 36, 1, 1)
    assert 0 < header.header_bytes < len(saved(kind))
    cut = read_header(saved(kind)[: header.header_bytes + 20])
    assert cut is not None
    assert (cut.width, cut.height) == (52, 36)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_exifs(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    header = read_header(saved(kind, exif=exif))
    assert header is not None
    assert (header.width, header.height, header.orientation) == (52, 36, orientation)


@pytest.mark.parametrize(
    "options", [{"lossless": True}, {"save_all": True, "append_images": [PICTURE.resize((300, 7))]}]
)
def test_every_kind_of_webp_tells_its_size(options: dict[str, object]) -> None:
    header = read_header(saved("WEBP", PICTURE.resize((300, 7)), **options))
    assert header is not None
    assert (header.width, header.height) == (300, 7)


def test_a_gif_is_as_large_as_its_first_frame_where_that_reaches_beyond_the_screen() -> None:
    data = bytearray(saved("GIF", comment=b"a word" * 100))
    data[6:8] = (20).to_bytes(2, "little")
    header = read_header(data)
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == (52, 36)
    assert header is not None
    assert (header.width, header.height) == (52, 36)


def entry(kind: int, count: int, value: bytes, order: str = "<") -> bytes:
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}L", 8)
    return head + struct.pack(f"{order}HHHL", 1, 0x112, kind, count) + value.ljust(4, b"\0") + bytes(4)


ENTRIES = {
    "a short": (entry(3, 1, b"\6\0"), 6),
    "a big-endian short": (entry(3, 1, b"\0\6", ">"), 6),
    "a long": (entry(4, 1, b"\6\0\0\0"), 6),
    "a big-endian long": (entry(4, 1, b"\0\0\0\6", ">"), 6),
    "a signed short": (entry(8, 1, b"\6\0"), 6),
    "two shorts, of which the first counts": (entry(3, 2, b"\6\0\3\0"), 6),
    "a byte": (entry(1, 1, b"\6"), 1),
    "a text": (entry(2, 2, b"6\0"), 1),
    "undefined": (entry(7, 1, b"\6"), 1),
    "a float": (entry(11, 1, struct.pack("<f", 6)), 1),
    "a rational": (entry(5, 1, struct.pack("<L", 26)) + struct.pack("<LL", 6, 1), 1),
    "a rational of nothing by nothing": (entry(5, 1, struct.pack("<L", 26)) + bytes(8), 1),
    "0": (entry(3, 1, b"\0\0"), 1),
    "8": (entry(3, 1, b"\x08\0"), 8),
    "9": (entry(3, 1, b"\x09\0"), 1),
    "no value": (entry(3, 0, b"\6\0"), None),
    "4 billion values": (entry(3, 2**32 - 1, b"\6\0"), None),
    "65,535 entries, of which one is there": (entry(3, 1, b"\6\0")[:8] + b"\xff\xff" + entry(3, 1, b"\6\0")[10:], 6),
    "a directory beyond the end": (b"II*\0" + b"\xff" * 4 + entry(3, 1, b"\6\0")[8:], None),
    "a directory that is cut": (entry(3, 1, b"\6\0")[:20], None),
    "half a head": (b"II*\0\x08", 1),
    "no TIFF": (b"JUNK" + entry(3, 1, b"\6\0")[4:], 1),
    "nothing": (b"", None),
}


@pytest.mark.parametrize("name", ENTRIES)
@pytest.mark.parametrize("prefix", [b"", b"Exif\0\0", b"Exif\0\0Exif\0\0"])
def test_an_orientation_that_is_no_integer_from_1_to_8_is_upright(name: str, prefix: bytes) -> None:
    block, expected = ENTRIES[name]
    assert exif_orientation(prefix + block) == expected


XMP = b'<x:xmpmeta><rdf tiff:Orientation="6"/></x:xmpmeta>'
RAW = b"\nexif\n      32\n" + SIX.tobytes().hex().encode() + b"\n"
PROFILE, PACKET = b"Raw profile type exif\0", b"XML:com.adobe.xmp\0"
TEXTS = {
    "eXIf": (b"eXIf", SIX.tobytes()[6:], 6),
    "eXIf with a prefix": (b"eXIf", SIX.tobytes(), 6),
    "raw profile": (b"tEXt", PROFILE + RAW, 6),
    "packed raw profile": (b"zTXt", PROFILE + b"\0" + zlib.compress(RAW), 6),
    "XMP": (b"iTXt", PACKET + b"\0\0\0\0" + XMP, 6),
    "packed XMP": (b"iTXt", PACKET + b"\1\0\0\0" + zlib.compress(XMP), 6),
    "a raw profile that is no hexadecimal": (b"tEXt", PROFILE + RAW[:30] + b"no", 1),
    "a raw profile that is not packed": (b"zTXt", PROFILE + b"\0" + RAW, 1),
    "a raw profile packed in another way": (b"zTXt", PROFILE + b"\1" + zlib.compress(RAW), 1),
    "a raw profile of nothing": (b"zTXt", PROFILE, 1),
    "XMP without its text": (b"iTXt", PACKET + b"\0\0", 1),
}


@pytest.mark.parametrize("is_last", [False, True])
@pytest.mark.parametrize("name", TEXTS)
def test_a_png_is_turned_by_exif_or_its_raw_profile_or_xmp(name: str, is_last: bool) -> None:
    kind, content, expected = TEXTS[name]
    header = read_header(with_chunk(kind, content, is_last=is_last))
    assert header is not None
    assert header.orientation == expected


def test_exif_in_a_png_counts_before_other_texts() -> None:
    info = PngImagePlugin.PngInfo()
    info.add(b"iTXt", PACKET + b"\0\0\0\0" + XMP.replace(b"6", b"8"))
    info.add(b"tEXt", PROFILE + RAW.replace(b"0600", b"0300"))
    header = read_header(saved("PNG", pnginfo=info, exif=SIX))
    assert header is not None
    assert header.orientation == 6


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_xmp_alone_turns_neither_a_jpeg_nor_a_webp(kind: str) -> None:
    header = read_header(saved(kind, xmp=XMP))
    assert header is not None
    assert header.orientation == 1


def test_the_scans_of_a_jpeg_are_counted_and_no_bytes_that_look_like_one() -> None:
    progressive = saved("JPEG", progressive=True)
    header = read_header(progressive)
    assert header is not None
    assert header.scans == progressive.count(b"\xff\xda") == 10
    behind = read_header(progressive + progressive)
    assert behind is not None
    assert behind.scans == 20  # another picture behind the first counts too,
    behind = read_header(progressive * 20)
    assert behind is not None
    assert behind.scans == 10  # unless it would decide
    thumbnail = b"\xff\xe1" + struct.pack(">H", len(progressive) + 2) + progressive
    baseline = saved("JPEG")
    header = read_header(baseline[:20] + thumbnail + baseline[20:])
    assert header is not None
    assert (header.scans, header.width) == (1, 52)


def test_a_jpeg_tells_its_channels_and_the_size_of_an_mcu() -> None:
    told = []
    for mode, options in (("RGB", {"subsampling": "4:2:2"}), ("L", {}), ("CMYK", {}), ("RGB", {"keep_rgb": True})):
        header = read_header(saved("JPEG", PICTURE.convert(mode), **options))
        assert header is not None
        told.append((header.components, header.mcu, header.adobe_transform))
    assert told == [(3, (16, 8), None), (1, (8, 8), None), (4, (8, 8), 0), (3, (8, 8), 0)]


def test_what_is_no_image_has_no_header() -> None:
    for data in (
        b"",
        b"these are words",
        saved("BMP"),
        b"\xff\xd8\xff",
        b"RIFF\0\0\0\0WEBP",
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a",
    ):
        assert read_header(data) is None
    for kind in ("JPEG", "PNG", "WEBP", "GIF"):
        data = saved(kind)
        for length in range(min(len(data), 700)):
            header = read_header(data[:length])
            assert header is None or (header.width, header.height) == (52, 36)
    empty = bytearray(saved("PNG"))
    empty[16:20] = bytes(4)
    assert read_header(empty) is None


WHOLE = saved("JPEG", exif=SIX)
EMPTY_CHUNK = chunk(b"tEXt", b"")


def test_of_millions_of_parts_a_bounded_number_is_visited() -> None:
    segments = WHOLE[:2] + b"\xff\xe1\0\2" * 2_000_000 + WHOLE[2:]
    chunks = saved("PNG")[:33] + EMPTY_CHUNK * 1_000_000 + saved("PNG")[33:]
    assert sum(1 for _ in jpeg_segments(memoryview(segments))) == MOST_PARTS
    assert sum(1 for _ in png_chunks(memoryview(chunks))) == MOST_PARTS
    assert read_header(segments) is None
    assert read_marks(segments) is None
    assert read_header(chunks) is None
    behind = saved("PNG")[:-12] + EMPTY_CHUNK * 1_000_000 + chunk(b"eXIf", SIX.tobytes()[6:]) + saved("PNG")[-12:]
    found = read_header(behind)
    assert found is not None
    assert (found.width, found.height, found.orientation) == (52, 36, 1)
    webp = saved("WEBP", exif=SIX)
    many = webp[:30] + b"ICCP\0\0\0\0" * 1_000_000 + webp[30:]
    assert read_header(many[:4] + struct.pack("<L", len(many) - 8) + many[8:]) is None
    gif = saved("GIF")
    assert read_header(gif[:13] + bytes(768) + b"!\xfe" + b"\1a" * 1_000_000 + b"\0" + gif[13:]) is None


def test_a_header_of_as_many_parts_as_the_bound_is_read_and_one_of_more_is_none() -> None:
    jpeg, png = WHOLE[:2] + b"\xff\xe5\0\2" * (HEADER_PARTS - 20) + WHOLE[2:], saved("PNG")
    assert read_header(jpeg).orientation == 6
    assert read_header(jpeg[:2] + b"\xff\xe5\0\2" * 20 + jpeg[2:]) is None
    assert read_header(png[:33] + EMPTY_CHUNK * (HEADER_PARTS - 2) + png[33:]).width == 52
    assert read_header(png[:33] + EMPTY_CHUNK * HEADER_PARTS + png[33:]) is None


@pytest.mark.parametrize("filling", [b"\xff", b"\0", b"\xff\0", b"\xff\xd3", b"junk"])
def test_fill_bytes_and_junk_are_passed_over_up_to_a_bound(filling: bytes) -> None:
    """A reader that looks at each run of them again from each of its bytes never ends here."""
    longest = WHOLE[:20] + filling * (HEADER_JUNK // len(filling))
    header = read_header(longest + WHOLE[20:])
    assert header is not None
    assert (header.width, header.orientation) == (52, 6)
    assert read_header(longest + filling[:1] + WHOLE[20:]) is None
    assert (read_marks(WHOLE[:20] + filling * 4_000_000) or read_header(WHOLE[:20] + filling * 4_000_000)) is None


def test_scans_and_directories_of_a_hostile_size_are_read_to_a_bound() -> None:
    progressive = saved("JPEG", progressive=True)
    header = read_header(progressive[:-2] + b"\xff\xda\0\2" * 1_000_000 + b"\xff\xd9")
    assert header is not None
    assert header.scans == MOST_SCANS + 1
    block = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + struct.pack("<HHLL", 0x10F, 2, 2**32 - 1, 0) * 65_535
    segments = [block[at : at + 60_000] for at in range(0, len(block), 60_000)]
    told = b"".join(
        b"\xff\xe1" + struct.pack(">H", len(one) + 8) + b"Exif\0\0" + one for one in [segments[0][6:], *segments[1:]]
    )
    header = read_header(saved("JPEG")[:2] + told + saved("JPEG")[2:])
    assert header is not None
    assert header.orientation == 1


def test_only_the_last_of_many_packed_texts_is_unpacked_and_no_more_than_a_quarter_megabyte_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unpacked: list[int] = []
    real = zlib.decompressobj

    class Counted:
        def decompress(self, data: bytes, most: int = 0) -> bytes:
            made = real().decompress(data, most)
            unpacked.append(len(made))
            return made

    monkeypatch.setattr(zlib, "decompressobj", Counted)
    bomb = chunk(b"zTXt", PROFILE + b"\0" + zlib.compress(bytes(50_000_000)))
    data = saved("PNG")
    header = read_header(data[:33] + bomb * 50 + data[33:])
    assert header is not None
    assert header.orientation == 1
    assert unpacked == [2**18]


def test_metadata_is_left_out_and_nothing_else() -> None:
    jpeg = saved("JPEG", exif=SIX, icc_profile=b"profile" * 30_000, comment=b"words", xmp=XMP)
    assert without_metadata(jpeg, "jpg") == saved("JPEG")
    cmyk = saved("JPEG", PICTURE.convert("CMYK"))
    assert without_metadata(cmyk, "jpg") == cmyk
    info = PngImagePlugin.PngInfo()
    info.add_text("Title", "words", zip=True)
    png = saved("PNG", pnginfo=info, exif=SIX, icc_profile=b"profile", dpi=(72, 72))
    assert without_metadata(png, "png") == saved("PNG")
    palette = saved("PNG", PICTURE.convert("P"), transparency=3)
    assert without_metadata(palette, "png") == palette
    moving = saved("PNG", save_all=True, append_images=[PICTURE.rotate(180)])
    assert without_metadata(moving, "png") == moving
    assert image_kind(without_metadata(saved("WEBP"), "webp")) == "webp"
