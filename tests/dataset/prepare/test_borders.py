"""Other people's files, damaged at random: whatever a parser makes of them, the user sees a line and no traceback."""

from __future__ import annotations

import io
import json
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from images import encoded, run_here
from sources import write_hub
from stoker.dataset.prepare import Options, on_threads, open_source, prepare
from stoker.dataset.prepare.checked import checked_image
from stoker.dataset.undecodable import UndecodableImage
from stoker.errors import StokerError
from stoker.storage import locate

PLAIN = Options(jpeg="original", on_bad="skip", shuffles=False, copies=True)
DAMAGED = 150


def _parquet(folder: Path) -> Path:
    return write_hub(folder / "train-0.parquet", range(6))


def _list(folder: Path) -> Path:
    for number in range(4):
        (folder / f"{number}.jpg").write_bytes(encoded(number))
    lines = [json.dumps({"path": f"{number}.jpg", "label": number % 2}) for number in range(4)]
    (folder / "list.jsonl").write_text("\n".join(lines))
    return folder / "list.jsonl"


def _csv(folder: Path) -> Path:
    _list(folder)
    (folder / "list.csv").write_text("path,label\n" + "".join(f'"{n}.jpg",{n % 2}\n' for n in range(4)))
    return folder / "list.csv"


def _tar(folder: Path) -> Path:
    with tarfile.open(folder / "train-0.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for number in range(4):
            for name, data in ((f"{number}ä.jpg", encoded(number)), (f"{number}ä.cls", b"1")):
                header = tarfile.TarInfo(name)
                header.size = len(data)
                archive.addfile(header, io.BytesIO(data))
    return folder / "train-0.tar"


def damage(whole: bytes, draw: random.Random) -> bytes:
    """``whole`` with one to five faults of disks, networks and programs."""
    data = bytearray(whole)
    for _ in range(draw.randint(1, 5)):
        at = draw.randrange(len(data))
        kind = draw.randrange(5)
        if kind == 0:
            data[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            data[at : at + draw.randrange(1, 64)] = draw.randbytes(draw.randrange(1, 64))
        elif kind == 2:
            del data[max(1, at) :]
        elif kind == 3:
            data[at:at] = data[at : at + draw.randrange(1, 600)]
        else:
            data[at : at + 4] = draw.choice([b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"])
    return bytes(data)


@pytest.mark.parametrize("make", [_parquet, _list, _csv, _tar])
def test_a_damaged_file_is_read_or_refused_in_a_line(make: Callable[[Path], Path], tmp_path: Path) -> None:
    file = make(tmp_path)
    whole = file.read_bytes()
    # a Parquet file's footer is what says how to read the rest, and is small
    start = len(whole) - 2000 if file.suffix == ".parquet" else 0
    draw, refused = random.Random(7), []
    for _ in range(DAMAGED):
        file.write_bytes(whole[:start] + damage(whole[start:], draw))
        try:
            source = open_source(str(tmp_path if file.suffix in {".parquet", ".tar"} else file), PLAIN)
            for entries in source.splits.values():
                for row in range(len(entries)):
                    source.reader.read(entries[row])
        except StokerError as error:
            refused.append(str(error))
    assert refused
    assert [line for line in refused if "\n" in line or str(tmp_path) not in line] == []


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_a_damaged_image_is_stored_or_a_bad_one(kind: str) -> None:
    from PIL import Image

    body = io.BytesIO()
    pixels = np.random.default_rng(3).integers(0, 256, (20, 24, 3), np.uint8)
    Image.fromarray(pixels).save(body, kind)
    draw, refused = random.Random(7), []
    for _ in range(DAMAGED):
        try:
            checked_image(damage(body.getvalue(), draw), Options(jpeg="original"))
        except UndecodableImage as error:
            refused.append(str(error))
    assert refused
    assert [line for line in refused if "\n" in line] == []


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("[" * 100_000, "not a JSON object"),
        ("9" * 10_000, "not a JSON object"),
        ('{"path": "\\ud800.jpg", "label": 1}', r"path '\\ud800.jpg' is no name of a file"),
        ('{"path": "a\\u0000.jpg", "label": 1}', r"path 'a\\x00.jpg' is no name of a file"),
    ],
)
def test_a_line_that_no_parser_takes_is_a_bad_one(line: str, why: str, tmp_path: Path) -> None:
    file = _list(tmp_path)
    file.write_text(f"{file.read_text()}\n{line}\n")
    prepare(open_source(str(file), PLAIN), locate(tmp_path / "data"), PLAIN, map=on_threads())
    bad = [json.loads(text) for text in (tmp_path / "data" / "bad.jsonl").read_text().splitlines()]
    assert [found["reason"] for found in bad] == [why.replace("\\\\", "\\")]


def test_a_file_without_line_ends_is_not_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list.csv").write_bytes(b"x" * (1 << 25))
    code, _, err = run_here(monkeypatch, capfd, tmp_path / "list.csv", tmp_path / "data")
    assert (code, err.count("\n")) == (2, 1), err
    assert "line 1 has 16,777,216 characters and more" in err


def test_classes_that_are_no_text_get_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tars").mkdir()
    _tar(tmp_path / "tars")
    for content in (b"\xff\xfe\0", None):
        if content is None:
            (tmp_path / "classes").unlink()
        else:
            (tmp_path / "classes").write_bytes(content)
        code, _, err = run_here(
            monkeypatch, capfd, tmp_path / "tars", tmp_path / "data", "--classes", tmp_path / "classes"
        )
        assert (code, err.count("\n")) == (2, 1), err
        assert "classes: cannot be read as text" in err
