"""Crops that are decoded alone are the crops of the whole image, in every pixel."""

import io
import random
import shutil
import subprocess

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.v2 import functional as transform

from stoker.dataset import Sample
from stoker.dataset.decode import TrainingImages, decode
from stoker.dataset.decode.crop import random_resized_crop
from stoker.dataset.decode.image import decode_jpeg
from stoker.dataset.format.jpeg import crop_jpeg, read_marks
from stoker.dataset.undecodable import UndecodableImage
from stoker.recipe import Augment

SUBSAMPLINGS = {"4:4:4": (8, 8), "4:2:2": (16, 8), "4:2:0": (16, 16), "grey": (8, 8)}
"""name to MCU in pixels"""


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Noise and edges: what shows a wrong pixel."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (height // 5 + 1, width // 5 + 1, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def photograph(width: int, height: int) -> Image.Image:
    """Edges over 1/f noise, the spectrum of photographs (Field, JOSA A 4(12), 1987)."""
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = np.inf
    layers = []
    for _ in range(3):
        noise = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((height, width))) / frequency, s=(height, width))
        layers.append(128 + 40 * noise / noise.std())
    pixels = np.stack(layers, axis=2)
    for _ in range(40):
        left, top, side = rng.integers(0, width), rng.integers(0, height), rng.integers(10, 80)
        pixels[top : top + side, left : left + side] += rng.normal(0, 40, 3)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def marked(image: Image.Image, subsampling: str, interval: int, **options: object) -> bytes:
    file = io.BytesIO()
    if subsampling == "grey":
        image.convert("L").save(file, "JPEG", quality=92, restart_marker_blocks=interval, **options)
    else:
        image.save(file, "JPEG", quality=92, subsampling=subsampling, restart_marker_blocks=interval, **options)
    return file.getvalue()


def sample(data: bytes, orientation: int = 1) -> Sample:
    return Sample(0, "key", 0, memoryview(data), "shard", 0, orientation, read_marks(data))


@settings(max_examples=300, deadline=None)
@given(
    width=st.integers(1, 150),
    height=st.integers(1, 130),
    subsampling=st.sampled_from(sorted(SUBSAMPLINGS)),
    seed=st.integers(0, 5),
    drawn=st.data(),
)
def test_a_crop_decoded_alone_has_the_pixels_of_the_whole(
    width: int, height: int, subsampling: str, seed: int, drawn: st.DataObject
) -> None:
    columns = -(-width // SUBSAMPLINGS[subsampling][0])
    interval = drawn.draw(st.sampled_from([k for k in range(1, columns + 1) if columns % k == 0]))
    w, h = drawn.draw(st.integers(1, width)), drawn.draw(st.integers(1, height))
    left = drawn.draw(st.sampled_from([0, width - w, (width - w) // 2]) | st.integers(0, width - w))
    top = drawn.draw(st.sampled_from([0, height - h, (height - h) // 2]) | st.integers(0, height - h))
    data = marked(picture(width, height, seed), subsampling, interval)
    marks = read_marks(data)
    assert marks is not None

    cut, (x, y, cut_width, cut_height) = crop_jpeg(data, marks, (left, top, w, h))
    alone = decode_jpeg(cut)[:, y : y + cut_height, x : x + cut_width]

    assert torch.equal(alone, decode(data)[:, top : top + h, left : left + w])


@pytest.mark.skipif(shutil.which("jpegtran") is None, reason="jpegtran (libjpeg-turbo-progs) is not installed")
def test_a_crop_of_a_4_4_0_image_has_the_pixels_of_the_whole() -> None:
    lying = marked(picture(96, 128), "4:2:2", 0)
    turned = subprocess.run(
        ["jpegtran", "-rotate", "90", "-restart", "2B"], input=lying, check=True, capture_output=True
    ).stdout
    marks = read_marks(turned)
    assert marks is not None
    assert (marks.mcu_width, marks.mcu_height) == (8, 16)
    whole, draw = decode(turned), random.Random(2)
    for _ in range(100):
        w, h = draw.randint(1, marks.width), draw.randint(1, marks.height)
        left, top = draw.randint(0, marks.width - w), draw.randint(0, marks.height - h)
        cut, (x, y, _, _) = crop_jpeg(turned, marks, (left, top, w, h))
        assert torch.equal(decode_jpeg(cut)[:, y : y + h, x : x + w], whole[:, top : top + h, left : left + w])


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(8, 200),
    height=st.integers(8, 200),
    subsampling=st.sampled_from(["4:4:4", "4:2:0", "grey"]),
    orientation=st.integers(1, 8),
    is_marked=st.booleans(),
    flips=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_training_image_is_torchvisions_crop_and_resize_of_the_whole(
    width: int, height: int, subsampling: str, orientation: int, is_marked: bool, flips: bool, seed: int
) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    columns = -(-width // SUBSAMPLINGS[subsampling][0])
    data = marked(picture(width, height), subsampling, columns if is_marked else 0, exif=exif)
    draws = np.random.default_rng(seed).random((1, TrainingImages.draws))
    augment = Augment(flip=1.0 if flips else 0.0)
    decoder = TrainingImages(48, augment)
    out = decoder.empty(1)

    failed = decoder.decode([sample(data, orientation)], draws, out)

    whole = decode(data)
    left, top, w, h = random_resized_crop(draws[0, 1:].tolist(), whole.shape[2], whole.shape[1], augment)
    expected = transform.resized_crop_image(whole.contiguous(), top, left, h, w, [48, 48], antialias=True)
    assert not failed
    assert torch.equal(out[0], expected.flip(-1) if flips else expected)
    assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:0", "grey"])
@pytest.mark.parametrize("side", [24, 50, 100])
def test_scaling_in_dct_stays_within_two_levels_of_pillows_antialiased_resize(subsampling: str, side: int) -> None:
    width, height = 449, 397
    data = marked(photograph(width, height), subsampling, -(-width // SUBSAMPLINGS[subsampling][0]))
    decoder = TrainingImages(side, Augment(scale=(0.5, 1.0), flip=0.0), scales_in_dct=True)
    whole = Image.fromarray(decode(data).permute(1, 2, 0).numpy())
    draws = np.random.default_rng(1).random((20, TrainingImages.draws))
    out = decoder.empty(20)

    decoder.decode([sample(data)] * 20, draws, out)

    for own, made in zip(draws.tolist(), out, strict=True):
        left, top, w, h = random_resized_crop(own[1:], width, height, Augment(scale=(0.5, 1.0)))
        crop = whole.crop((left, top, left + w, top + h)).resize((side, side), Image.Resampling.BILINEAR)
        expected = torch.from_numpy(np.array(crop)).permute(2, 0, 1)
        assert float((made.int() - expected.int()).abs().float().mean()) <= 2


def test_the_same_draws_give_the_same_image_and_others_another() -> None:
    data = marked(picture(160, 120), "4:2:0", 2)
    decoder = TrainingImages(32, Augment())
    draws = np.random.default_rng(3).random((2, TrainingImages.draws))
    out = decoder.empty(3)

    decoder.decode([sample(data)] * 3, draws[[0, 0, 1]], out)

    assert torch.equal(out[0], out[1])
    assert not torch.equal(out[0], out[2])


def test_what_cannot_be_decoded_is_told_by_its_place_and_spoils_no_other() -> None:
    good = marked(picture(160, 120), "4:2:0", 2)
    decoder = TrainingImages(32, Augment())
    draws = np.random.default_rng(3).random((3, TrainingImages.draws))
    out, alone = decoder.empty(3), decoder.empty(1)

    failed = decoder.decode([sample(good), sample(b"this is no image"), sample(good)], draws, out)
    decoder.decode([sample(good)], draws[2:], alone)

    assert list(failed) == [1]
    assert isinstance(failed[1], UndecodableImage)
    assert torch.equal(out[2], alone[0])


def test_marks_are_those_of_a_jpeg_that_can_be_cut_and_of_no_other() -> None:
    image = picture(160, 120)
    progressive = io.BytesIO()
    image.save(progressive, "JPEG", progressive=True, restart_marker_blocks=2)
    png = io.BytesIO()
    image.save(png, "PNG")
    good = marked(image, "4:2:0", 5)

    assert read_marks(good) is not None
    assert read_marks(marked(image, "4:2:0", 3)) is None  # 3 divides no row of 10
    assert read_marks(marked(image, "4:2:0", 0)) is None
    assert read_marks(progressive.getvalue()) is None
    assert read_marks(png.getvalue()) is None
    for length in range(0, len(good), 97):
        assert read_marks(good[:length]) is None
