"""How opaque an image's pixels are, in every way in which a PNG, WebP or GIF says it."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from images import encoded, raw_png
from stoker.dataset.decode import decode, decode_opacity
from stoker.dataset.undecodable import UndecodableImage

GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def colour(*values: int) -> bytes:
    return struct.pack(f">{len(values)}H", *values)


def half_clear(alpha: int = 0) -> Image.Image:
    """8 by 2 pixels of one colour, the right half with this alpha."""
    image = Image.new("RGBA", (8, 2), (200, 100, 50, 255))
    image.paste((200, 100, 50, alpha), (4, 0, 8, 2))
    return image


def moving_gif(*, is_clear: bool) -> bytes:
    """A first frame of 2 by 1 pixels at the left of a screen of 4 by 1; white is transparent, or nothing is."""
    control = b"\x21\xf9\x04" + bytes([int(is_clear), 0, 0, 1, 0])
    pixels = b"\x02\x02\x44\x0a\x00"  # black, white, in codes of three bits between clear and end
    return b"GIF89a" + struct.pack("<HHBBB", 4, 1, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff" + control + (
        b"," + struct.pack("<HHHHB", 0, 0, 2, 1, 0) + pixels + b";"
    )  # fmt: skip


@pytest.mark.parametrize(("depth", "largest_named"), [(1, 1), (2, 3), (4, 15), (8, 255), (16, 65535)])
def test_the_grey_that_a_png_names_is_transparent_and_no_other(depth: int, largest_named: int) -> None:
    samples = [0, 1, largest_named, largest_named - 1]
    for named in {0, 1, largest_named - 1, largest_named}:
        found = decode_opacity(raw_png(depth, GREY, samples, names=colour(named)))
        assert found is not None
        assert found.tolist() == [[0 if sample == named else 255 for sample in samples]]


def test_the_colour_that_a_png_names_is_transparent_where_all_of_its_samples_match() -> None:
    samples = [9, 8, 7, 9, 8, 6, 0, 8, 7, 9, 8, 7]
    found = decode_opacity(raw_png(8, RGB, samples, names=colour(9, 8, 7)))
    assert found is not None
    assert found.tolist() == [[0, 255, 255, 0]]


@pytest.mark.parametrize(
    "data",
    [
        raw_png(8, GREY, [1, 2, 3, 4], names=colour(0x0503)),
        raw_png(8, RGB, [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4], names=colour(0x0103, 3, 0xFF03)),
        raw_png(4, GREY, [1, 2, 3, 4], names=colour(0x13)),
    ],
)
def test_bits_of_a_named_colour_above_the_depth_are_ignored(data: bytes) -> None:
    """As the PNG specification asks of decoders (3rd edition, section 11.3.1.1)."""
    found = decode_opacity(data)
    assert found is not None
    assert found.tolist() == [[255, 255, 0, 255]]


@pytest.mark.parametrize(
    ("data", "opacity"),
    [
        (raw_png(8, GREY_ALPHA, [9, 0, 9, 1, 9, 254, 9, 255]), [0, 1, 254, 255]),
        (raw_png(8, RGB_ALPHA, [9, 9, 9, 0, 9, 9, 9, 1, 9, 9, 9, 254, 9, 9, 9, 255]), [0, 1, 254, 255]),
        (raw_png(16, GREY_ALPHA, [9, 0, 9, 0x01FF, 9, 0xFE00, 9, 65535]), [0, 1, 254, 255]),
        (raw_png(16, RGB_ALPHA, [9, 9, 9, 0, 9, 9, 9, 0x01FF, 9, 9, 9, 0xFE00, 9, 9, 9, 65535]), [0, 1, 254, 255]),
        (raw_png(8, PALETTE, [0, 1, 2, 3], names=bytes([7, 0, 128])), [7, 0, 128, 255]),
        (raw_png(2, PALETTE, [0, 1, 2, 3], names=bytes([255, 0])), [255, 0, 255, 255]),
        (raw_png(1, PALETTE, [0, 1, 1, 0], names=bytes([7])), [7, 255, 255, 7]),
        (moving_gif(is_clear=True), [255, 0, 0, 0]),
    ],
)
def test_alpha_of_channels_and_palettes_has_eight_bits(data: bytes, opacity: list[int]) -> None:
    found = decode_opacity(data)
    assert found is not None
    assert found.tolist() == [opacity]
    assert decode(data).shape[1:] == found.shape


@pytest.mark.filterwarnings("error")
def test_pixels_of_a_transparent_palette_are_decoded_without_a_warning() -> None:
    pixels = decode(raw_png(8, PALETTE, [0, 1, 2, 3], names=bytes([7, 0, 128])))
    assert pixels[:, 0].T.tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]


@pytest.mark.parametrize("options", [{"lossless": True}, {"quality": 80}, {"save_all": True, "lossless": True}])
def test_a_webp_has_the_alpha_that_it_was_saved_with(options: dict[str, object]) -> None:
    more = {"append_images": [Image.new("RGBA", (8, 2))]} if "save_all" in options else {}
    found = decode_opacity(saved(half_clear(77), "WEBP", **options, **more))
    assert found is not None
    assert found.tolist() == [[255] * 4 + [77] * 4] * 2


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_opacity_is_turned_with_the_pixels(kind: str) -> None:
    exif = Image.Exif()
    exif[0x112] = 6  # shown turned by 90 degrees clockwise
    found = decode_opacity(saved(half_clear(), kind, exif=exif))
    assert found is not None
    assert found.tolist() == [[255, 255]] * 4 + [[0, 0]] * 4


@pytest.mark.parametrize(
    "data",
    [
        encoded(1),
        encoded(1, "PNG"),
        encoded(1, "PNG", "RGBA"),
        encoded(1, "PNG", "LA"),
        encoded(1, "PNG", "P"),
        encoded(1, "WEBP"),
        encoded(1, "WEBP", "RGBA"),
        encoded(1, "GIF"),
        raw_png(8, GREY, [1, 2, 3, 4], names=colour(5)),
        raw_png(2, PALETTE, [2, 3, 3, 2], names=bytes([0, 7])),
        moving_gif(is_clear=False),
    ],
)
def test_an_image_without_a_transparent_pixel_has_no_opacity(data: bytes) -> None:
    assert decode_opacity(data) is None


def test_a_colour_of_sixteen_bits_that_is_named_is_refused_and_not_guessed() -> None:
    data = raw_png(16, RGB, [1, 2, 3] * 4, names=colour(1, 2, 3))
    assert decode(data).shape == (3, 1, 4)
    with pytest.raises(UndecodableImage, match="16 bits a channel and names a transparent colour") as refused:
        decode_opacity(data)
    assert "\n" not in str(refused.value)


def test_damage_is_refused_in_one_line() -> None:
    data = saved(half_clear().resize((300, 200)), "PNG")
    with pytest.raises(UndecodableImage, match="the png image cannot be decoded") as refused:
        decode_opacity(data[: len(data) // 2])
    assert "\n" not in str(refused.value)


def test_a_damaged_half_of_noise_is_refused() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 4), dtype=np.uint8)
    data = saved(Image.fromarray(noise), "WEBP", lossless=True)
    with pytest.raises(UndecodableImage, match="cannot be decoded"):
        decode_opacity(data[: len(data) // 2])
