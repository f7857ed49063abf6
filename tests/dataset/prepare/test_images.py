"""The stored form of one image, and of a folder with every oddity that ImageNet has."""

import io
import json
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from images import make
from stoker.dataset import SampleReader
from stoker.dataset.decode import decode, image_header
from stoker.dataset.format.index import read_index
from stoker.dataset.format.jpeg import crop_jpeg
from stoker.dataset.prepare import Options
from stoker.dataset.prepare.images import store_image
from stoker.dataset.prepare.report import report
from stoker.dataset.undecodable import UndecodableImage


def picture(width: int = 150, height: int = 110, mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(1)
    noise = rng.integers(0, 255, (11, 15, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height)).convert(mode)


def saved(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def rotated_exif(orientation: int, thumbnail: int = 0) -> bytes:
    exif = Image.Exif()
    exif[0x112] = orientation
    exif[0x10E] = "t" * thumbnail
    return exif.tobytes()


def adobe_rgb() -> bytes:
    """A colour profile with other primaries than sRGB's."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    return profile.tobytes().replace(b"sRGB", b"Adob")


def deep_png() -> bytes:
    return saved(Image.fromarray(np.arange(110 * 150, dtype=np.uint16).reshape(110, 150) * 3), "PNG")


def four_four_zero() -> bytes:
    """Subsampled downwards only, which Pillow does not write: a 4:2:2 JPEG, transposed."""
    wide = saved(picture(112, 144), subsampling="4:2:2")
    return subprocess.run(["jpegtran", "-transpose"], input=wide, capture_output=True, check=True).stdout


GOOD = {
    "a/cmyk.jpg": saved(picture(mode="CMYK")),
    "a/grey.jpg": saved(picture(mode="L")),
    "a/grey-alpha.png": saved(picture(mode="LA"), "PNG"),
    "a/alpha.png": saved(picture(mode="RGBA"), "PNG"),
    "a/palette.gif": saved(picture(mode="P"), "GIF"),
    "a/deep.png": deep_png(),
    "a/really-a-png.jpg": saved(picture(), "PNG"),
    "a/webp.webp": saved(picture(), "WEBP"),
    "a/progressive.jpg": saved(picture(), progressive=True),
    "a/marked-already.jpg": saved(picture(), restart_marker_blocks=7),
    "a/444.jpg": saved(picture(), subsampling="4:4:4"),
    "a/422.jpg": saved(picture(), subsampling="4:2:2"),
    "a/440.jpg": four_four_zero(),
    "a/420.jpg": saved(picture(), subsampling="4:2:0"),
    "b/large-exif.jpg": saved(picture(), exif=rotated_exif(1, 60_000)),
    "b/adobe-rgb.jpg": saved(picture(), icc_profile=adobe_rgb()),
    "b/rgb-not-ycc.jpg": saved(picture(), keep_rgb=True),
    "b/one-pixel.jpg": saved(picture(1, 1)),
    "b/padded.jpg": saved(picture())[:-2] + bytes(40) + b"\xff\xd9" + b"trailing bytes",
} | {f"b/turned-{n}.jpg": saved(picture(), exif=rotated_exif(n)) for n in range(2, 9)}

_WHOLE = saved(picture(400, 300), quality=95)
BAD = {
    "a/empty.jpg": b"",
    "a/truncated.jpg": _WHOLE[: len(_WHOLE) // 2],
    "a/truncated.png": saved(picture(), "PNG")[:-60],
    "b/damaged.jpg": _WHOLE[: len(_WHOLE) // 2] + bytes(500) + _WHOLE[len(_WHOLE) // 2 + 500 :],
    "b/damaged.png": saved(picture(), "PNG").replace(b"IDAT", b"IDAT\0\0\0\0", 1),
    "b/page.jpg": b"<html>404 Not Found</html>",
    "b/bitmap.bmp": saved(picture(), "BMP"),
    "b/text.jpg.txt": b"remember the milk",
}


@pytest.fixture(scope="module")
def oddities(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("oddities") / "images"
    for path, data in (GOOD | BAD).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


@pytest.mark.parametrize("metadata", ["keep", "drop"])
def test_every_oddity_of_imagenet_becomes_a_sample_with_the_pixels_of_its_file(
    oddities: Path, tmp_path: Path, metadata: str
) -> None:
    options = Options(on_bad="skip", validation_fraction=0, metadata=metadata)  # type: ignore[arg-type]

    made = make(oddities, tmp_path / "data", options)

    reader = SampleReader(made.root, "train")
    found = {sample.key: sample for sample in reader.read(range(len(reader)))}
    assert set(found) == {path.rpartition(".")[0] for path in GOOD}
    for path, data in GOOD.items():
        sample = found[path.rpartition(".")[0]]
        assert torch.equal(decode(sample.data), decode(data)), path
        assert (sample.marks is not None) == (path.endswith(".jpg") and "png" not in path), path
    assert made.kept == {}
    with tarfile.open(tmp_path / "data" / "train" / "000000.tar") as tar:
        assert {"a/really-a-png.png", "a/palette.gif"} <= set(tar.getnames())
    assert made.manifest.split("train").samples == len(GOOD)


def test_the_index_knows_size_before_rotation_and_the_rotation(oddities: Path, tmp_path: Path) -> None:
    made = make(oddities, tmp_path / "data", Options(on_bad="skip", validation_fraction=0))
    index = read_index(made.root, made.manifest.split("train").shards[0])
    told = {
        key: (w, h, index.orientation(row))
        for row, (key, w, h) in enumerate(zip(index.keys, index.width.tolist(), index.height.tolist(), strict=True))
    }
    assert {told[f"b/turned-{n}"] for n in range(2, 9)} == {(150, 110, n) for n in range(2, 9)}
    assert told["a/420"] == (150, 110, 1)


def test_the_list_of_bad_files_reads_well(oddities: Path, tmp_path: Path) -> None:
    told = report(make(oddities, tmp_path / "data", Options(on_bad="skip", validation_fraction=0)))

    assert f"left out {len(BAD)} files" in told
    listed = [json.loads(line) for line in (tmp_path / "data" / "bad.jsonl").read_text().splitlines()]
    reasons = {bad["path"]: bad["reason"] for bad in listed}
    assert set(reasons) == set(BAD)
    assert reasons["a/empty.jpg"] == "the image is empty (0 bytes)"
    assert "truncated" in reasons["a/truncated.jpg"]
    assert reasons["b/damaged.jpg"].startswith("the jpg image is damaged (")
    assert reasons["b/page.jpg"].startswith("not an image that stoker decodes")
    assert all(len(reason) < 160 and "\n" not in reason and "0x" not in reason.lower() for reason in reasons.values())
    rewriters = json.loads((tmp_path / "data" / "prepared.json").read_text())["rewriters"]
    assert [name.split(" ")[0] for name in rewriters] == ["libjpeg-turbo"]


def test_a_jpeg_is_stored_byte_for_byte_where_that_is_asked_for() -> None:
    for path, data in GOOD.items():
        assert store_image(data, Options(jpeg="original")).data == data, path
    marked = store_image(saved(picture(), restart_marker_blocks=5), Options(jpeg="original")).marks
    assert marked is not None
    assert marked.interval == 5
    assert store_image(GOOD["a/marked-already.jpg"], Options(jpeg="original")).marks is None  # 7 of 10 MCUs


def test_a_crop_of_a_marked_image_is_the_crop_of_the_whole() -> None:
    data = saved(picture(400, 300))
    stored = store_image(data, Options())
    assert stored.marks is not None
    cut, (left, top, width, height) = crop_jpeg(stored.data, stored.marks, (133, 77, 90, 120))
    assert len(cut) < len(stored.data) / 2
    assert torch.equal(decode(cut)[:, top : top + height, left : left + width], decode(data)[:, 77:197, 133:223])


def test_without_a_check_a_damaged_image_is_stored_as_it_was_and_counted() -> None:
    stored = store_image(BAD["b/damaged.jpg"], Options(checks=False))
    assert (stored.data, stored.kept) == (BAD["b/damaged.jpg"], "damaged")
    with pytest.raises(UndecodableImage, match="is damaged"):
        store_image(BAD["b/damaged.jpg"], Options())


def test_files_that_could_not_be_marked_are_counted_in_the_report(tmp_path: Path) -> None:
    for number, data in enumerate([_WHOLE, BAD["b/damaged.jpg"]]):
        (tmp_path / "images" / str(number)).mkdir(parents=True)
        (tmp_path / "images" / str(number) / "1.jpg").write_bytes(data)
    told = report(make(tmp_path / "images", tmp_path / "data", Options(checks=False)))
    assert "stored 1 file unchanged, without restart markers: damaged" in told


def larger() -> Iterator[tuple[str, bytes]]:
    image = picture(500, 300)
    yield "jpg", saved(image)
    yield "png", saved(image, "PNG")
    yield "turned", saved(image, exif=rotated_exif(6))
    yield "cmyk", saved(image.convert("CMYK"))


@pytest.mark.parametrize(("name", "data"), list(larger()))
def test_a_larger_image_is_scaled_down_upright_and_can_be_cut(name: str, data: bytes) -> None:
    stored = store_image(data, Options(longest_side=200, quality=85))

    wanted = (120, 200) if name == "turned" else (200, 120)
    assert (stored.kind, stored.width, stored.height, stored.orientation) == ("jpg", *wanted, 1)
    assert stored.marks is not None
    with Image.open(io.BytesIO(stored.data)) as image:
        assert image.size == wanted
        assert image.layer[0][1:3] == (2, 2)  # type: ignore[attr-defined]
    exact = Image.fromarray(decode(data).permute(1, 2, 0).numpy()).resize(wanted, Image.Resampling.LANCZOS)
    difference = np.abs(np.asarray(exact).astype(int) - decode(stored.data).permute(1, 2, 0).numpy().astype(int))
    assert difference.mean() < 4
    assert store_image(data, Options(longest_side=200, quality=85)).data == stored.data


def test_a_jpeg_that_is_small_enough_is_rewritten_without_loss_and_another_kind_becomes_a_jpeg() -> None:
    data = saved(picture())
    assert store_image(data, Options(longest_side=150)).data == store_image(data, Options()).data
    stored = store_image(saved(picture(), "PNG"), Options(longest_side=150))
    assert (stored.kind, stored.width, stored.height) == ("jpg", 150, 110)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_the_orientation_is_the_one_by_which_images_are_turned_when_decoded() -> None:
    wide = picture(60, 40)
    for orientation in range(1, 9):
        for kind in ("JPEG", "PNG", "WEBP"):
            data = saved(wide, kind, exif=rotated_exif(orientation))
            assert image_header(data).orientation == orientation
            assert (decode(data).shape[1] == 60) == (orientation >= 5)
    for broken in (b"Exif\0\0garbage", rotated_exif(9), rotated_exif(1)[:20]):
        data = saved(wide, exif=broken)
        assert image_header(data).orientation == 1
        assert decode(data).shape == (3, 40, 60)


def test_the_same_images_and_options_give_the_same_bytes(oddities: Path, tmp_path: Path) -> None:
    options = Options(on_bad="skip", longest_side=100)
    one, two = (make(oddities, tmp_path / name, options) for name in ("one", "two"))
    assert one.manifest.fingerprint == two.manifest.fingerprint
