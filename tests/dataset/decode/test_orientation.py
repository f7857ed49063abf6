"""One orientation for preparation, training, evaluation and serving, and no picture is refused for its metadata."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, PngImagePlugin

from images import door_pixels
from stoker.dataset import Sample
from stoker.dataset.decode import TrainingImages, TrainingImagesOnGpu, decode, evaluation_image
from stoker.dataset.prepare import Options
from stoker.dataset.prepare.images import StoredImage, store_image
from stoker.dataset.undecodable import UndecodableImage
from stoker.recipe import Augment
from stoker_serve.answers import Problem

WIDE, HIGH = 96, 64
COLOURS = np.zeros((HIGH, WIDE, 3), np.uint8)
COLOURS[:32, :48], COLOURS[:32, 48:], COLOURS[32:, :48] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
PICTURE = Image.fromarray(COLOURS)
XMP = b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta><tiff:Orientation>1</tiff:Orientation></x:xmpmeta>"


def saved(kind: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    PICTURE.save(file, kind, **options)
    return file.getvalue()


def app1(content: bytes) -> bytes:
    return b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content


def tiff(kind: int, value: bytes, order: str = "<", count: int = 1) -> bytes:
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}L", 8)
    return head + struct.pack(f"{order}HHHL", 1, 0x112, kind, count) + value.ljust(4, b"\0") + bytes(4)


SIX = tiff(3, b"\6\0")
SEGMENTS = {
    "plain": app1(b"Exif\0\0" + SIX),
    "XMP first": app1(XMP) + app1(b"Exif\0\0" + SIX),
    "junk first": app1(b"junk") + app1(b"Exif\0\0" + SIX),
    "an empty one first": app1(b"") + app1(b"Exif\0\0" + SIX),
    "a big-endian long": app1(b"Exif\0\0" + tiff(4, b"\0\0\0\6", ">")),
    "a long": app1(b"Exif\0\0" + tiff(4, b"\6\0\0\0")),
    "the prefix twice": app1(b"Exif\0\0Exif\0\0" + SIX),
    "an odd pad byte in the prefix": app1(b"Exif\0\xff" + SIX),
    "a byte": app1(b"Exif\0\0" + tiff(1, b"\6")),
    "a rational": app1(b"Exif\0\0" + tiff(5, b"\x1a\0\0\0") + struct.pack("<LL", 6, 1)),
    "a text": app1(b"Exif\0\0" + tiff(2, b"6\0", count=2)),
    "nine": app1(b"Exif\0\0" + tiff(3, b"\x09\0")),
    "a directory that is cut": app1(b"Exif\0\0" + SIX[:20]),
    "a directory that says more entries than it has": app1(b"Exif\0\0" + SIX[:8] + b"\xff\xff" + SIX[10:]),
    "in two segments": app1(b"Exif\0\0" + SIX[:15]) + app1(b"Exif\0\0" + SIX[15:]),
    "two of them": app1(b"Exif\0\0" + SIX) + app1(b"Exif\0\0" + tiff(3, b"\3\0")),
}
UPRIGHT = {
    "an odd pad byte in the prefix",
    "a byte",
    "a rational",
    "a text",
    "nine",
    "a directory that is cut",
}


def jpeg(name: str, **options: object) -> bytes:
    data = saved(**options)
    return data[:20] + SEGMENTS[name] + data[20:]


def nearest(pixels: torch.Tensor) -> list[tuple[int, ...]]:
    """The colours in the middle of each quarter, rounded to 0 or 255."""
    height, width = pixels.shape[1:]
    places = [(height // 4 + y * height // 2, width // 4 + x * width // 2) for y in (0, 1) for x in (0, 1)]
    return [tuple(255 * (v > 127) for v in pixels[:, y, x].tolist()) for y, x in places]


def trained(stored: StoredImage, decoder: TrainingImages | TrainingImagesOnGpu) -> torch.Tensor:
    sample = Sample(0, "key", 0, memoryview(stored.data), "shard", 0, stored.orientation, stored.marks)
    out = decoder.empty(1)
    assert not decoder.decode([sample], np.full((1, decoder.draws), 0.5), out)
    return out[0]


def by_cpu(encoded: list[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    return [torch.ops.image.decode_jpeg(one, 3, False) for one in encoded]


WHOLE = Augment(scale=(1.0, 1.0), ratio=(0.1, 10.0), flip=0.0)
CPU = TrainingImages(48, WHOLE)
SCALED = TrainingImages(16, WHOLE, scales_in_dct=True)
GPU = TrainingImagesOnGpu(48, WHOLE, device=torch.device("cpu"), decode_batch=by_cpu)


@pytest.mark.parametrize("name", SEGMENTS)
def test_training_evaluation_and_serving_see_a_jpeg_as_pillow_turns_it(name: str) -> None:
    data = jpeg(name, subsampling="4:4:4")
    quarters = nearest(torch.from_numpy(COLOURS if name in UPRIGHT else np.rot90(COLOURS, -1).copy()).permute(2, 0, 1))
    with warnings.catch_warnings(), Image.open(io.BytesIO(data)) as image:
        warnings.simplefilter("ignore")
        by_pillow = ImageOps.exif_transpose(image) if name not in UPRIGHT else image
        assert nearest(torch.from_numpy(np.array(by_pillow)).permute(2, 0, 1)) == quarters
    assert isinstance(door_pixels(data, 10**9), int)
    for options in (Options(), Options(metadata="drop"), Options(jpeg="original"), Options(longest_side=60)):
        stored = store_image(data, options)
        assert stored.kept == ""
        assert (stored.marks is None) == (options.jpeg == "original")
        expected = 1 if name in UPRIGHT or options.longest_side else 6
        assert stored.orientation == expected
        for seen in (trained(stored, CPU), trained(stored, SCALED), trained(stored, GPU), decode(stored.data)):
            assert nearest(seen) == quarters
        assert nearest(evaluation_image(stored.data, image_size=64, resize=64)) == quarters
    assert torch.equal(decode(data), decode(store_image(data, Options()).data))


def text_resolution(orientation: int) -> bytes:
    entries = struct.pack("<HHLL", 0x112, 3, 1, orientation) + struct.pack("<HHL4s", 0x11A, 2, 3, b"72\0")
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2) + entries + bytes(4)


def rational_orientation() -> bytes:
    return b"Exif\0\0" + tiff(5, b"\x1a\0\0\0") + struct.pack("<LL", 6, 0)


@pytest.mark.parametrize("kind", ["WEBP", "PNG", "JPEG"])
@pytest.mark.parametrize(("block", "is_turned"), [(text_resolution(6), True), (rational_orientation(), False)])
def test_a_tag_of_an_odd_type_is_no_pixel(kind: str, block: bytes, is_turned: bool) -> None:
    data = saved(kind, exif=block)
    size = (96, 64) if is_turned else (64, 96)
    assert tuple(decode(data).shape) == (3, *size)
    stored = store_image(data, Options())
    assert (stored.width, stored.height, stored.orientation) == (WIDE, HIGH, 6 if is_turned else 1)
    assert tuple(evaluation_image(data, image_size=32, resize=32).shape) == (3, 32, 32)


def chunk(name: bytes, content: bytes, *, is_sound: bool = True) -> bytes:
    checksum = zlib.crc32(name + content) ^ (not is_sound)
    return struct.pack(">L", len(content)) + name + content + struct.pack(">L", checksum)


PACKED = zlib.compress(bytes(2_000_000))
CHUNKS = {
    "a text that unpacks to 2 MB": chunk(b"zTXt", b"Comment\0\0" + PACKED),
    "an international text that unpacks to 2 MB": chunk(b"iTXt", b"Comment\0\1\0\0\0" + PACKED),
    "a profile that unpacks to 2 MB": chunk(b"iCCP", b"profile\0\0" + PACKED),
    "100 MB of texts": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(1_000_000))) * 100,
    "a text packed in an unknown way": chunk(b"zTXt", b"Comment\0\7" + PACKED),
    "a profile packed in an unknown way": chunk(b"iCCP", b"profile\0\7" + PACKED),
    "a text of which nothing is left": chunk(b"iCCP", b""),
    "a text with a wrong checksum": chunk(b"tEXt", b"Comment\0hello", is_sound=False),
    "a short resolution": chunk(b"pHYs", b"\1"),
    "a short gamma": chunk(b"gAMA", b"\1"),
    "EXIF that is junk": chunk(b"eXIf", b"junk"),
    "EXIF with a fraction": chunk(b"eXIf", rational_orientation()[6:]),
    "a raw profile that is no hexadecimal": chunk(b"tEXt", b"Raw profile type exif\0\nexif\n4\nxyz\n"),
}


@pytest.mark.parametrize("is_last", [False, True])
@pytest.mark.parametrize("name", CHUNKS)
def test_no_text_profile_or_exif_decides_whether_a_png_is_decoded(name: str, is_last: bool) -> None:
    plain = saved("PNG")
    at = len(plain) - 12 if is_last else 33
    data = plain[:at] + CHUNKS[name] + plain[at:]

    stored = store_image(data, Options())

    assert torch.equal(decode(data), decode(plain))
    assert (stored.data, stored.width, stored.height, stored.orientation) == (data, WIDE, HIGH, 1)
    assert door_pixels(data, 10**9) == WIDE * HIGH


JPEG_SEGMENTS = {
    "a short JFIF": b"\xff\xe0\0\x07JFIF\0",
    "an Adobe segment without its end": b"\xff\xee\0\x07Adobe",
    "a profile without its numbers": b"\xff\xe2\0\x0eICC_PROFILE\0",
    "an index of several pictures": b"\xff\xe2\0\x0eMPF\0II*\0\xff\xff\xff\xff",
    "Photoshop's, cut": b"\xff\xed\0\x14Photoshop 3.0\x008BIM",
    "a resolution that is a text": app1(text_resolution(1)),
    "a length of nothing": b"\xff\xef\0\0",
}


@pytest.mark.parametrize("name", JPEG_SEGMENTS)
def test_no_segment_decides_whether_a_jpeg_is_decoded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = saved()
    data = plain[:20] + JPEG_SEGMENTS[name] + plain[20:]
    pixels = decode(plain)
    assert torch.equal(decode(data), pixels)
    for options in (Options(), Options(jpeg="original"), Options(longest_side=60)):
        stored = store_image(data, options)
        assert nearest(trained(stored, SCALED)) == nearest(pixels)
    assert door_pixels(data, 10**9) == WIDE * HIGH

    def refuse(*_: object) -> None:
        raise RuntimeError("torchvision does not decode it")

    monkeypatch.setattr(torch.ops.image, "decode_jpeg", refuse)  # then Pillow does
    assert nearest(decode(data)) == nearest(pixels)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "JPEG"])
def test_pixels_of_another_size_than_the_header_tells_are_refused(kind: str) -> None:
    data = bytearray(saved(kind))
    if kind == "PNG":  # a second header, which Pillow follows
        second = struct.pack(">LL", 20, 20) + bytes(data[24:29])
        data[33:33] = chunk(b"IHDR", second)
    elif kind == "JPEG":
        at = data.index(b"\xff\xc0")
        data[at:at] = data[at : at + 5] + struct.pack(">HH", 20, 20) + data[at + 9 : at + 19]
    else:
        data[6:8] = b"\xff\xff"
    with pytest.raises(UndecodableImage if kind != "GIF" else AssertionError):
        assert tuple(decode(bytes(data)).shape) == (3, HIGH, WIDE)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_a_size_beyond_the_bound_is_refused_by_the_header_alone(kind: str) -> None:
    data = bytearray(saved(kind, **({"exif": text_resolution(1)} if kind == "WEBP" else {})))
    at = {"JPEG": data.find(b"\xff\xc0") + 5, "PNG": 16, "WEBP": 24, "GIF": 6}[kind]
    data[at : at + {"PNG": 8, "WEBP": 6}.get(kind, 4)] = {
        "JPEG": struct.pack(">HH", 65_000, 65_000),
        "PNG": struct.pack(">LL", 65_000, 65_000),
        "WEBP": b"\xff\xff\0" * 2,
        "GIF": struct.pack("<HH", 65_000, 65_000),
    }[kind]
    with pytest.raises(UndecodableImage, match="more than the 178,956,970 that are decoded"):
        decode(bytes(data))
    with pytest.raises(UndecodableImage, match="more than the 178,956,970"):
        store_image(bytes(data), Options(checks=False))
    if kind != "GIF":
        with pytest.raises(Problem) as refused:
            door_pixels(bytes(data), 10**11)
        assert refused.value.code == "too_many_pixels"


def test_xmp_that_a_png_brings_beside_exif_is_not_followed() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="8"/>', zip=True)
    assert tuple(decode(saved("PNG", pnginfo=info, exif=b"Exif\0\0" + tiff(3, b"\1\0"))).shape) == (3, HIGH, WIDE)
    assert tuple(decode(saved("PNG", pnginfo=info)).shape) == (3, WIDE, HIGH)
