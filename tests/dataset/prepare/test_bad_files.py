"""Unusual images that are accepted, files that are not, and how they are reported."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from images import encoded, make, make_folder, run_job
from stoker.dataset import SampleReader
from stoker.dataset.decode import decode
from stoker.dataset.prepare import Options
from stoker.dataset.prepare.report import report
from stoker.errors import DatasetError
from stoker.storage import locate


def deep() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.arange(36 * 48, dtype=np.uint16).reshape(36, 48) * 37).save(file, "PNG")
    return file.getvalue()


ODDITIES = {
    "a/cmyk.jpg": encoded(1, mode="CMYK"),
    "a/grey.jpg": encoded(2, mode="L"),
    "a/alpha.png": encoded(3, "PNG", "RGBA"),
    "a/deep.png": deep(),
    "a/really-a-png.jpg": encoded(5, "PNG"),
    "b/webp.webp": encoded(6, "WEBP"),
    "b/plain.jpg": encoded(7),
}
BAD = {
    "a/truncated.jpg": encoded(8)[:-40],
    "a/truncated.png": encoded(9, "PNG")[:-40],
    "b/empty.jpg": b"",
    "b/words.jpg": b"not a picture at all",
    "b/notes.txt": b"remember the milk",
    "readme.md": b"outside of the classes",
}


def odd_folder(at: Path) -> Path:
    exif = Image.Exif()
    exif[0x112] = 6
    for path, data in (ODDITIES | BAD | {"b/rotated.jpg": encoded(10, exif=exif)}).items():
        (at / path).parent.mkdir(parents=True, exist_ok=True)
        (at / path).write_bytes(data)
    return at


def test_oddities_are_taken_and_bad_files_left_out_with_a_report(tmp_path: Path) -> None:
    source = odd_folder(tmp_path / "images")

    ran = run_job(source, tmp_path / "data", "--on-bad", "skip", "--validation-fraction", "0", "--local")

    assert ran.returncode == 0, ran.stderr
    assert "left out 6 files" in ran.stdout
    report = [json.loads(line) for line in (tmp_path / "data" / "bad.jsonl").read_text().splitlines()]
    assert {bad["path"] for bad in report} == set(BAD)
    assert all(bad["reason"] and "\n" not in bad["reason"] for bad in report)
    reader = SampleReader(locate(tmp_path / "data"), "train")
    shapes = {sample.key: tuple(decode(sample.data).shape) for sample in reader.read(range(len(reader)))}
    assert len(shapes) == len(ODDITIES) + 1
    assert shapes.pop("b/rotated") == (3, 48, 36)
    assert set(shapes.values()) == {(3, 36, 48)}
    with tarfile.open(tmp_path / "data" / "train" / "000000.tar") as tar:
        assert "a/really-a-png.png" in tar.getnames()


def test_bad_files_end_the_preparation_with_one_line_that_names_the_first_and_counts_the_rest(tmp_path: Path) -> None:
    source = odd_folder(tmp_path / "images")

    ran = run_job(source, tmp_path / "data", "--local")

    assert ran.returncode == 2
    line = ran.stderr.splitlines()[-1]
    assert "a/truncated.jpg and 5 more" in line
    assert "--on-bad skip" in line
    assert not (tmp_path / "data" / "dataset.json").exists()
    assert len((tmp_path / "data" / "bad.jsonl").read_text().splitlines()) == 6
    for path in BAD:
        (source / path).unlink()
    assert make(source, tmp_path / "data", Options()).bad == ()
    assert not (tmp_path / "data" / "bad.jsonl").exists()


def test_bad_files_are_grouped_by_reason_with_the_first_of_each(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "images", {"cat": 4, "dog": 4})
    for number in range(10, 15):
        (folder / "cat" / f"{number}.jpg").write_bytes(b"")
        (folder / "dog" / f"{number}.jpg").write_bytes(encoded(number)[: -40 - number])
    (folder / "readme.md").write_text("hello")

    made = make(folder, tmp_path / "data", Options(jpeg="original", on_bad="skip"))

    lines = report(made).splitlines()
    assert lines[0] == f"left out 11 files, listed in {tmp_path}/data/bad.jsonl:"
    assert lines[1].startswith("        5  the image is empty (0 bytes): cat/10.jpg, cat/11.jpg, cat/12.jpg, ...")
    assert "      5  the jpg image cannot be decoded (" in lines[2]  # the numbers of bytes differ
    assert lines[3] == "        1  lies outside the class folders: readme.md"
    assert len((tmp_path / "data" / "bad.jsonl").read_text().splitlines()) == 11


def test_a_class_without_one_good_image_is_named(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "images", {"cat": 3, "dog": 0})
    (folder / "dog" / "1.jpg").write_bytes(b"woof")
    with pytest.raises(DatasetError, match="no valid image is left of class 'dog'"):
        make(folder, tmp_path / "data", Options(jpeg="original", on_bad="skip"))
