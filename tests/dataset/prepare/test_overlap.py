"""A destination that overlaps its source is refused before anything is written, whatever the kind, links resolved."""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import Store
from images import encoded, make, make_folder, objects, run_here
from sources import archives, write_hub, write_mnist
from stoker.dataset.prepare import Options, open_source, prepare
from stoker.errors import DatasetError
from stoker.storage import locate

Paths = tuple[str, str]
"""source and destination"""


def folder(at: Path) -> Paths:
    return str(make_folder(at / "d/photos", {"cat": 3, "dog": 3})), str(at / "d")


def linked_folder(at: Path) -> Paths:
    source, destination = folder(at)
    (at / "link").symlink_to(source)
    return str(at / "link"), destination


def linked_destination(at: Path) -> Paths:
    source, destination = folder(at)
    (at / "link").symlink_to(destination)
    return source, str(at / "link")


def same(at: Path) -> Paths:
    source, _ = folder(at)
    return source, source


def inside(at: Path) -> Paths:
    source, _ = folder(at)
    return source, f"{source}/cat/data"


def inside_by_a_link(at: Path) -> Paths:
    source, _ = folder(at)
    (at / "link").symlink_to(f"{source}/cat")
    return source, str(at / "link/data")


def list_file(at: Path) -> Paths:
    make_folder(at / "photos", {"cat": 3, "dog": 3})
    (at / "d").mkdir()
    return write_list(at / "d/list.csv", at / "photos"), str(at / "d")


def listed_files(at: Path) -> Paths:
    make_folder(at / "d/photos", {"cat": 3, "dog": 3})
    return write_list(at / "list.csv", at / "d/photos"), str(at / "d")


def write_list(path: Path, photos: Path) -> str:
    with path.open("w", newline="") as text:
        rows = [[os.path.relpath(file, path.parent), file.parent.name] for file in sorted(photos.rglob("*.jpg"))]
        csv.writer(text).writerows([["path", "label"], *rows])
    return str(path)


def parquet(at: Path) -> Paths:
    write_hub(at / "d/hub/train-00000-of-00001.parquet", range(20))
    return str(at / "d/hub"), str(at / "d")


def parquet_pattern(at: Path) -> Paths:
    return f"{parquet(at)[0]}/*.parquet", str(at / "d")


def torchvision(at: Path) -> Paths:
    write_mnist(at / "d/sets")
    return f"torchvision://MNIST?root={at}/d/sets", str(at / "d")


def imagenet(at: Path) -> Paths:
    (at / "d/imagenet").mkdir(parents=True)
    for name, data in archives().items():
        (at / "d/imagenet" / name).write_bytes(data)
    return str(at / "d/imagenet"), str(at / "d")


KINDS = [folder, linked_folder, linked_destination, same, inside, inside_by_a_link, list_file, listed_files, parquet]
KINDS += [parquet_pattern, torchvision, imagenet]


@pytest.mark.parametrize("place", KINDS)
@pytest.mark.parametrize("replaces", [False, True])
def test_an_overlap_is_refused_and_nothing_is_touched(
    tmp_path: Path, place: Callable[[Path], Paths], replaces: bool
) -> None:
    source, destination = place(tmp_path)
    before = objects(tmp_path)
    opened = open_source(source, Options())
    with pytest.raises(DatasetError, match=r"is inside the (source|destination) .*; choose a destination"):
        prepare(opened, locate(destination), Options(jpeg="original"), replaces=replaces)
    assert objects(tmp_path) == before


@pytest.fixture
def data(tmp_path: Path) -> Path:
    make(make_folder(tmp_path / "photos", {"cat": 30, "dog": 30}), tmp_path / "d", Options(jpeg="original"))
    return tmp_path / "d"


@pytest.mark.parametrize("options", [["--copy", "--replace"], ["--replace"]])
@pytest.mark.parametrize("name", ["train", "."])
def test_the_shards_of_a_data_set_are_never_deleted_to_make_room_for_one_of_them(
    data: Path, options: list[str], name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    before = objects(data)
    code, _, said = run_here(monkeypatch, capfd, data / name, data, *options)
    assert code == 2
    assert "choose" in said
    assert objects(data) == before


def test_tars_may_be_indexed_where_they_are(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data / "train", tmp_path / "foreign/train", ignore=shutil.ignore_patterns("*.idx"))
    root = locate(tmp_path / "foreign")
    made = prepare(open_source(root.url, Options()), root, Options())
    assert made.manifest.split("train").samples > 0


def test_a_destination_beside_its_source_is_none_inside_it(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "photos", {"cat": 3, "dog": 3})
    (source / "cat" / "more.jpg").write_bytes(encoded(99))
    made = prepare(open_source(str(source), Options()), locate(tmp_path / "photos-prepared"), Options(jpeg="original"))
    assert sum(split.samples for split in made.manifest.splits.values()) == 7


@pytest.mark.store
def test_an_overlap_in_a_store_is_refused_too(store: Store) -> None:
    root = locate(store.fresh("overlap"))
    for name in ("cat/0.jpg", "dog/0.jpg"):
        (root / "d/photos" / name).write(encoded(len(name)))
    opened = open_source((root / "d/photos").url, Options())
    for destination in (root / "d", root / "d/photos", root / "d/photos/cat/data"):
        with pytest.raises(DatasetError, match="is inside the"):
            prepare(opened, destination, Options(jpeg="original"), replaces=True)
    assert dict(root.walk()).keys() == {"d/photos/cat/0.jpg", "d/photos/dog/0.jpg"}
