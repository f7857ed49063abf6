"""Images with transparent pixels, composited onto a colour."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from images import encoded, make, make_folder, objects, raw_png, samples
from sources import tar_of
from stoker.dataset.decode import decode
from stoker.dataset.prepare import Options
from stoker.dataset.prepare.background import colour_code, composite
from stoker.dataset.prepare.images import store_image
from stoker.dataset.prepare.report import report
from stoker.dataset.undecodable import UndecodableImage
from stoker.errors import DatasetError

COLOUR = "#fe8001"


def drawing(width: int = 40, height: int = 30) -> Image.Image:
    """Noise of every opacity."""
    return Image.fromarray(np.random.default_rng(3).integers(0, 256, (height, width, 4), dtype=np.uint8))


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def over(rgba: NDArray[np.uint8], background: tuple[int, int, int] = (0xFE, 0x80, 0x01)) -> NDArray[np.uint8]:
    """uint8 [H, W, 3]: the formula, in floating point."""
    pixels, alpha = rgba[..., :3].astype(np.float64), rgba[..., 3:].astype(np.float64)
    found = np.rint((pixels * alpha + np.array(background) * (255 - alpha)) / 255)
    return found.astype(np.uint8)


def shown(data: bytes) -> NDArray[np.uint8]:
    return decode(data).permute(1, 2, 0).numpy()


def turned_exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x112] = 6  # shown turned by 90 degrees clockwise
    exif[0x10E] = "a description"
    return exif


def test_every_pixel_over_every_opacity_is_the_formula_rounded() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    pixels, opacity = values.repeat(3, 256, 1), values[:, None].repeat(1, 256)
    found = composite(pixels, opacity, COLOUR).permute(1, 2, 0).numpy()
    rgba = torch.cat([pixels, opacity[None]]).permute(1, 2, 0).numpy()
    assert found.dtype == np.uint8
    assert np.array_equal(found, over(rgba))
    assert (found[255] == np.arange(256)[:, None]).all()
    assert (found[0] == [0xFE, 0x80, 0x01]).all()


TRANSPARENT = {
    "alpha": (saved(drawing()), drawing()),
    "grey": (saved(drawing().convert("LA")), drawing().convert("LA").convert("RGBA")),
    "webp": (saved(drawing(), "WEBP", lossless=True, exact=True), drawing()),
    "turned": (saved(drawing(), exif=turned_exif()), drawing().transpose(Image.Transpose.ROTATE_270)),
}


@pytest.mark.parametrize(("data", "image"), TRANSPARENT.values(), ids=TRANSPARENT)
def test_a_transparent_image_becomes_a_png_of_its_pixels_over_the_colour(data: bytes, image: Image.Image) -> None:
    stored = store_image(data, Options(background=COLOUR))

    assert np.array_equal(shown(stored.data), over(np.asarray(image)))
    assert (stored.kind, stored.width, stored.height, stored.orientation) == ("png", *image.size, 1)
    assert stored.is_transparent
    with Image.open(io.BytesIO(stored.data)) as opened:
        assert (opened.mode, opened.size, dict(opened.getexif())) == ("RGB", image.size, {})
    assert store_image(data, Options(background=COLOUR)).data == stored.data


def test_a_transparent_palette_is_composited_as_its_colours_are() -> None:
    flat = drawing().convert("RGB").quantize(16)
    for kind in ("PNG", "GIF"):
        data = saved(flat, kind, transparency=3)
        with Image.open(io.BytesIO(data)) as opened:
            rgba = np.asarray(opened.convert("RGBA"))
        assert set(np.unique(rgba[..., 3])) == {0, 255}
        assert np.array_equal(shown(store_image(data, Options(background=COLOUR)).data), over(rgba)), kind


OPAQUE = {
    "jpeg": encoded(1),
    "png": encoded(1, "PNG"),
    "opaque alpha": encoded(1, "PNG", "RGBA"),
    "palette": encoded(1, "PNG", "P"),
    "unused colour": saved(Image.new("L", (9, 9), 7), transparency=8),
    "webp": encoded(1, "WEBP", "RGBA"),
    "gif": encoded(1, "GIF"),
}


@pytest.mark.parametrize("options", [{}, {"jpeg": "original"}, {"longest_side": 24}, {"checks": False}])
@pytest.mark.parametrize("data", OPAQUE.values(), ids=OPAQUE)
def test_an_opaque_image_is_stored_as_without_a_background(data: bytes, options: dict[str, object]) -> None:
    plain = store_image(data, Options(**options))  # type: ignore[arg-type]
    assert store_image(data, Options(**options, background=COLOUR)) == plain  # type: ignore[arg-type]
    assert not plain.is_transparent


@pytest.mark.parametrize("data", [data for data, _ in TRANSPARENT.values()], ids=TRANSPARENT)
def test_without_a_background_a_transparent_image_keeps_its_bytes(data: bytes) -> None:
    for options in (Options(), Options(checks=False)):
        stored = store_image(data, options)
        assert stored.data == data
        assert stored.is_transparent == options.checks


def test_it_is_composited_before_it_is_scaled_down() -> None:
    image = Image.new("RGBA", (200, 100), (0, 0, 0, 0))
    image.paste((0, 0, 255, 255), (100, 0, 200, 100))
    stored = store_image(saved(image), Options(background="#ffff00", longest_side=50, quality=95))

    assert (stored.kind, stored.width, stored.height) == ("jpg", 50, 25)
    assert stored.marks is not None
    assert stored.is_transparent
    pixels = shown(stored.data).astype(int)
    assert np.abs(pixels[:, :20] - [255, 255, 0]).max() < 12
    assert np.abs(pixels[:, 30:] - [0, 0, 255]).max() < 12


def test_a_colour_of_sixteen_bits_that_is_named_transparent_is_refused_only_where_it_has_to_be_found() -> None:
    data = raw_png(16, 2, [1, 2, 3] * 4, names=bytes([0, 1, 0, 2, 0, 3]))
    assert store_image(data, Options()).data == data
    with pytest.raises(UndecodableImage, match="16 bits a channel"):
        store_image(data, Options(background=COLOUR))


def test_colours_have_names_and_codes() -> None:
    known = {"white": "#ffffff", "White": "#ffffff", " black ": "#000000", "rebeccapurple": "#663399", "#F0f": None}
    known |= {"#FE8001": COLOUR, "grey": "#808080", "#12345": None, "#1234567": None, "#ffffff80": None, "": None}
    known |= {"ffffff": None, "rgb(300,0,0)": None, "transparent": None, "#gggggg": None, "white\n#000000": None}
    for name, code in known.items():
        if code is not None:
            assert colour_code(name) == code
            continue
        with pytest.raises(DatasetError, match=r"^--background .*neither a colour of CSS by name") as refused:
            colour_code(name)
        assert "\n" not in str(refused.value)


@pytest.fixture
def drawings(tmp_path: Path) -> Path:
    """Three transparent drawings and six opaque images of two classes."""
    folder = make_folder(tmp_path / "drawings", {"cat": 3, "dog": 3})
    for n, name in enumerate(("cat/a.png", "cat/b.png", "dog/c.png")):
        (folder / name).write_bytes(saved(drawing(40 + n, 30)))
    return folder


def test_a_data_set_of_composited_images_is_recognised_with_its_colour_and_no_other(
    drawings: Path, tmp_path: Path
) -> None:
    made = make(drawings, tmp_path / "data", Options(background=COLOUR))

    assert json.loads((tmp_path / "data" / "prepared.json").read_text())["background"] == COLOUR
    assert make(drawings, tmp_path / "data", Options(background=COLOUR)).was_there
    for other in (None, "#fe8002"):
        with pytest.raises(DatasetError, match="another data set already"):
            make(drawings, tmp_path / "data", Options(background=other))
    stored = {key: data for split in samples(made).values() for key, _, data in split}
    assert np.array_equal(shown(stored["cat/b"]), over(np.asarray(drawing(41, 30))))


@pytest.mark.parametrize("now", ["#000000", None])
def test_an_interrupted_preparation_is_continued_with_the_same_colour_only(
    drawings: Path, tmp_path: Path, now: str | None
) -> None:
    class Stopped(Exception):
        pass

    def one(build, tasks):  # type: ignore[no-untyped-def]
        for number, task in enumerate(tasks):
            if number == 1:
                raise Stopped
            yield build(task)

    options = Options(background=COLOUR, shard_samples=2)
    with pytest.raises(Stopped):
        make(drawings, tmp_path / "data", options, map_=one)
    left = objects(tmp_path / "data")

    with pytest.raises(DatasetError, match=rf"another background \('{COLOUR}', now {now!r}\)"):
        make(drawings, tmp_path / "data", Options(background=now, shard_samples=2))

    assert objects(tmp_path / "data") == left
    made = make(drawings, tmp_path / "data", options)
    assert (made.shards_kept, made.transparent) == (1, 3)
    make(drawings, tmp_path / "fresh", options)
    assert objects(tmp_path / "data") == objects(tmp_path / "fresh")


def test_the_report_counts_transparent_images_and_says_what_can_be_done(drawings: Path, tmp_path: Path) -> None:
    told = report(make(drawings, tmp_path / "plain", Options()))
    assert "3 images with transparent pixels: models see the colours that are stored beneath (--background" in told
    assert json.loads(told.splitlines()[-1])["transparent"] == 3

    told = report(make(drawings, tmp_path / "composited", Options(background=COLOUR)))
    assert f"composited 3 images with transparent pixels onto {COLOUR}" in told

    for name in ("cat/a.png", "dog/c.png"):
        (drawings / name).unlink()
    assert "\n1 image with transparent" in "\n" + report(make(drawings, tmp_path / "one", Options()))
    (drawings / "cat/b.png").unlink()
    assert "transparent pixels" not in report(make(drawings, tmp_path / "none", Options(background=COLOUR)))


def test_transparent_images_of_tars_that_are_indexed_are_counted_too(tmp_path: Path) -> None:
    (tmp_path / "tars").mkdir()
    members = {"a.png": saved(drawing()), "a.cls": b"0", "b.jpg": encoded(1), "b.cls": b"1"}
    (tmp_path / "tars" / "train.tar").write_bytes(tar_of(members))
    assert make(tmp_path / "tars", tmp_path / "data", Options()).transparent == 1
