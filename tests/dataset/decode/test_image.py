import io
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from stoker.dataset.decode import (
    UndecodableImage,
    decode,
    evaluation_image,
    image_header,
    random_resized_crop,
)
from stoker.recipe import Augment

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 255, (12, 16, 3), dtype=np.uint8)).resize((160, 120))
ROTATED = Image.Exif()
ROTATED[0x112] = 6  # shown turned by 90 degrees clockwise


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


KINDS = {
    "rgb jpeg": encoded(PHOTO, "JPEG"),
    "progressive jpeg": encoded(PHOTO, "JPEG", progressive=True),
    "grey jpeg": encoded(PHOTO.convert("L"), "JPEG"),
    "cmyk jpeg": encoded(PHOTO.convert("CMYK"), "JPEG"),
    "rgb png": encoded(PHOTO, "PNG"),
    "grey png": encoded(PHOTO.convert("L"), "PNG"),
    "palette png": encoded(PHOTO.convert("P"), "PNG"),
    "alpha png": encoded(PHOTO.convert("RGBA"), "PNG"),
    "grey alpha png": encoded(PHOTO.convert("LA"), "PNG"),
    "16-bit png": encoded(Image.fromarray(np.asarray(PHOTO.convert("L")).astype(np.uint16) * 257), "PNG"),
    "webp": encoded(PHOTO, "WEBP"),
    "gif": encoded(PHOTO, "GIF"),
    "moving gif": encoded(PHOTO, "GIF", save_all=True, append_images=[PHOTO.rotate(180)]),
    "moving webp": encoded(PHOTO, "WEBP", save_all=True, append_images=[PHOTO.rotate(180)]),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_image_becomes_rgb_that_looks_like_it(name: str) -> None:
    pixels = decode(KINDS[name])

    assert (pixels.dtype, tuple(pixels.shape)) == (torch.uint8, (3, 120, 160))
    grey = "grey" in name or "16-bit" in name
    expected = np.asarray(PHOTO.convert("L").convert("RGB") if grey else PHOTO).transpose(2, 0, 1)
    assert np.abs(pixels.numpy().astype(int) - expected).mean() < (20 if "palette" in name or "gif" in name else 5)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_an_image_is_turned_upright_but_its_size_is_told_as_it_is_stored(kind: str) -> None:
    data = encoded(PHOTO, kind, exif=ROTATED)

    assert tuple(decode(data).shape) == (3, 160, 120)
    header = image_header(data)
    assert (header.width, header.height, header.orientation) == (160, 120, 6)


@pytest.mark.parametrize("name", ["rgb jpeg", "progressive jpeg", "grey jpeg", "cmyk jpeg", "rgb png", "webp"])
@pytest.mark.parametrize("lost", [1, 2, 10, 200, 1000])
def test_a_truncated_image_is_refused_and_never_filled_with_grey(name: str, lost: int) -> None:
    with pytest.raises(UndecodableImage, match="cannot be decoded") as caught:
        decode(KINDS[name][:-lost])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"these are words", b"BM" + bytes(100), b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP"])
def test_what_is_no_image_is_refused_in_one_line(data: bytes) -> None:
    with pytest.raises(UndecodableImage) as caught:
        decode(data)
    assert "\n" not in str(caught.value)


def test_the_kind_is_that_of_the_bytes() -> None:
    found = {image_header(data).kind for data in KINDS.values()}
    assert found == {"jpg", "png", "webp", "gif"}


def test_damaged_images_are_refused_or_decoded_but_never_end_the_process() -> None:
    """torchvision's PNG decoder ends the process on some of these; hence the child process."""
    code = (
        "import sys, random\n"
        "from stoker.dataset.decode import UndecodableImage, decode\n"
        "draw = random.Random(1)\n"
        "for encoded in sys.stdin.read().split():\n"
        "    data, refused = bytes.fromhex(encoded), 0\n"
        "    for _ in range(400):\n"
        "        damaged = bytearray(data)\n"
        "        for _ in range(draw.choice([1, 2, 5])): damaged[draw.randrange(len(data))] = draw.randrange(256)\n"
        "        try: decode(bytes(damaged))\n"
        "        except UndecodableImage: refused += 1\n"
        "    print(refused)\n"
    )
    encoded = " ".join(KINDS[name].hex() for name in ("rgb png", "rgb jpeg", "webp", "gif"))

    ran = subprocess.run([sys.executable, "-c", code], input=encoded, capture_output=True, check=False, text=True)

    assert ran.returncode == 0, (ran.returncode, ran.stderr[-500:])
    assert all(int(refused) > 0 for refused in ran.stdout.split())
    assert len(ran.stdout.split()) == 4


def test_crops_lie_inside_images_of_any_shape() -> None:
    shapes = random.Random(5)
    for draws in np.random.default_rng(4).random((300, 22)):
        width, height = shapes.choice([1, 7, 300, 4000]), shapes.choice([1, 9, 200, 5000])
        left, top, w, h = random_resized_crop(draws, width, height, Augment())
        assert 0 <= left <= left + w <= width
        assert 0 <= top <= top + h <= height
        assert w > 0
        assert h > 0


def test_evaluation_sees_the_centre() -> None:
    pixels = np.zeros((100, 200, 3), np.uint8)
    pixels[:, 50:150] = 255
    data = encoded(Image.fromarray(pixels), "PNG")

    seen = evaluation_image(data, image_size=96, resize=100)

    assert tuple(seen.shape) == (3, 96, 96)
    assert seen.min() == 255
