"""What an image costs to decode is bounded by its header, for every kind and in every place that decodes."""

import io
import re
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from images import door_pixels
from stoker.dataset import Sample
from stoker.dataset.decode import (
    TrainingImages,
    TrainingImagesOnGpu,
    UndecodableImage,
    decode,
    evaluation_image,
    image_header,
)
from stoker.dataset.format.image_header import MOST_PIXELS, MOST_SCANS, ImageHeader, read_header
from stoker.dataset.format.jpeg import crop_jpeg, read_marks
from stoker.dataset.prepare import Options
from stoker.dataset.prepare.images import store_image
from stoker.recipe import Augment
from stoker_serve.answers import Problem

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8))
WHOLE = Augment(scale=(1.0, 1.0), ratio=(0.1, 10.0), flip=0.0)


def saved(**options: object) -> bytes:
    file = io.BytesIO()
    PICTURE.save(file, "JPEG", **options)
    return file.getvalue()


def of_size(data: bytes, width: int, height: int) -> bytes:
    at = re.search(rb"\xff[\xc0\xc2]\0", data).start() + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def of_scans(count: int) -> bytes:
    """The picture with its last scan again and again; decoders warn, and go over all its pixels each time."""
    data = saved(progressive=True)
    own = read_header(data).scans
    return data[:-2] + data[data.rfind(b"\xff\xda") : -2] * (count - own) + data[-2:]


def no_decoder(*_: object) -> None:
    raise AssertionError("pixels are decoded")


@pytest.fixture
def nothing_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("decode_jpeg", "decode_webp"):
        monkeypatch.setattr(torch.ops.image, name, no_decoder)
    monkeypatch.setattr(Image.Image, "load", no_decoder)


def on_gpu(encoded: list[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    assert all(len(one) < 1000 for one in encoded), "only the decoder's own trial"
    return [torch.empty(3, 16, 16, dtype=torch.uint8) for _ in encoded]


DECODERS = (
    TrainingImages(32, WHOLE),
    TrainingImages(32, WHOLE, scales_in_dct=True),
    TrainingImagesOnGpu(32, WHOLE, device=torch.device("cpu"), decode_batch=on_gpu),
)
HUGE = {
    "as large as a poster": (of_size(saved(), 13_500, 13_500), "13500 by 13500 pixels"),
    "the largest": (of_size(saved(progressive=True), 65_535, 65_535), "65535 by 65535 pixels"),
    "a scan beyond the bound": (of_scans(MOST_SCANS + 1), f"more than the {MOST_SCANS}"),
    "a million scans": (of_scans(60_000), f"more than the {MOST_SCANS}"),
}


@pytest.mark.usefixtures("nothing_is_decoded")
@pytest.mark.parametrize("name", HUGE)
def test_what_is_too_much_is_refused_by_its_header_before_a_pixel_is_decoded(name: str) -> None:
    data, told = HUGE[name]
    for see in (
        decode,
        image_header,
        lambda one: evaluation_image(one, image_size=32, resize=32),
        lambda one: store_image(one, Options()),
        lambda one: store_image(one, Options(checks=False, jpeg="original")),
        lambda one: store_image(one, Options(longest_side=50)),
    ):
        with pytest.raises(UndecodableImage, match=told):
            see(data)
    for decoder in DECODERS:
        sample = Sample(0, "key", 0, memoryview(data), "shard", 0)
        failed = decoder.decode([sample], np.full((1, decoder.draws), 0.5), decoder.empty(1))
        assert told in str(failed[0])
    with pytest.raises(Problem, match=re.escape("178,956,970") if "pixels" in told else told):
        door_pixels(data, 10**11)


def test_what_is_within_the_bounds_is_decoded() -> None:
    data = of_scans(MOST_SCANS)
    assert read_header(data).scans == MOST_SCANS
    assert decode(data).shape == (3, 64, 96)
    assert door_pixels(data, 96 * 64) == 96 * 64
    wide, high = 13_377, 13_377
    assert wide * high <= MOST_PIXELS < wide * (high + 1)
    header = image_header(of_size(saved(), wide, high))
    assert (header.width, header.height) == (wide, high)
    with pytest.raises(UndecodableImage):
        image_header(of_size(saved(), wide, high + 1))


def test_bytes_behind_a_picture_that_look_like_scans_are_none() -> None:
    data = saved(progressive=True) + b"\xff\xda\0\2" * 1000
    assert read_header(data).scans == 10
    assert torch.equal(decode(data), decode(saved(progressive=True)))


def test_the_endpoint_has_a_bound_of_its_own() -> None:
    assert door_pixels(saved(), 96 * 64) == 96 * 64
    with pytest.raises(Problem, match="more than 6,143 pixels"):
        door_pixels(saved(), 96 * 64 - 1)


def test_a_cut_is_never_larger_than_what_is_decoded() -> None:
    """A damaged index may say any size."""
    data = saved(restart_marker_rows=1)
    marks = replace(read_marks(data), width=65_000, height=65_000, interval=65_000 // 16 + 1, table=0)
    with pytest.raises(ValueError, match="more than the 178,956,970"):
        crop_jpeg(data, marks, (0, 0, 65_000, 65_000))


def test_a_jpeg_with_two_frames_cannot_be_cut() -> None:
    data = saved(restart_marker_rows=1)
    at = data.index(b"\xff\xc0")
    frame = data[at : at + 19]
    assert read_marks(data) is not None
    assert read_marks(data[:at] + frame + data[at:]) is None


def test_pillow_opens_files_in_two_places_and_reads_exif_in_none() -> None:
    """Whoever needs the size, kind or orientation of an image asks its header."""
    package = Path(__file__).parents[3]
    texts = {
        path.name: path.read_text(encoding="utf-8")
        for folder in ("platform", "serve")
        for path in (package / folder).rglob("*.py")
    }
    assert not [name for name, text in texts.items() if "getexif" in text or "exif_transpose" in text]
    assert sorted(name for name, text in texts.items() if "Image.open" in text) == ["image.py", "training.py"]


def test_a_row_counts_as_thirty_two_pixels_at_least() -> None:
    assert ImageHeader("png", 1, 1000).held_pixels == 32_000
    assert ImageHeader("png", 31, 1000).held_pixels == 32_000
    assert ImageHeader("png", 33, 1000).held_pixels == 33_000
    assert ImageHeader("png", 1000, 1).held_pixels == 1000


def test_an_image_of_too_many_rows_is_refused_by_its_header() -> None:
    file = io.BytesIO()
    Image.new("L", (1, 64)).save(file, "PNG")
    data = bytearray(file.getvalue())
    data[20:24] = (MOST_PIXELS // 32 + 1).to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    with pytest.raises(UndecodableImage, match="is 1 by 5592406 pixels, which is more than"):
        decode(bytes(data))


def test_a_frame_of_no_components_is_no_image() -> None:
    with pytest.raises(UndecodableImage):
        decode(bytes.fromhex("ffd8ffc00008080010001000ffd9"))
