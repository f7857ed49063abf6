"""The destination of a preparation: what is refused, what is deleted, and what becomes visible when."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from images import make_folder, objects
from stoker.dataset import read_manifest
from stoker.dataset.prepare import Options, Source, on_threads, open_source, prepare
from stoker.dataset.prepare.destination import Destination
from stoker.dataset.prepare.ownership import Ownership
from stoker.dataset.prepare.shards import BadFile
from stoker.errors import DatasetError, StorageError
from stoker.storage import Location, locate

OPTIONS = Options(jpeg="original", shard_samples=7)


@pytest.fixture
def source(tmp_path: Path) -> Source:
    make_folder(tmp_path / "images", {"cat": 6, "dog": 6})
    return open_source(str(tmp_path / "images"), OPTIONS)


def test_a_claimed_destination_is_accepted_again_without_permission_to_replace(source: Source, tmp_path: Path) -> None:
    destination = Destination(locate(tmp_path / "data"), source, OPTIONS)
    assert not destination.holds_dataset(on_threads(), replaces=False)

    destination.claim()

    assert list(objects(tmp_path / "data")) == ["build/plan.json"]
    assert set(json.loads((tmp_path / "data" / "build" / "plan.json").read_text())) == {
        "source",
        "content",
        "stamps",
        "is_indexed",
        "options",
        "folders",
    }
    assert not destination.holds_dataset(on_threads(), replaces=False)


def test_claiming_deletes_the_data_set_to_be_replaced_and_nothing_else(source: Source, tmp_path: Path) -> None:
    prepare(source, locate(tmp_path / "data"), OPTIONS)
    (tmp_path / "data" / "train" / "notes.txt").write_text("years of work")

    Destination(locate(tmp_path / "data"), source, Options(seed=1)).claim()

    left = set(objects(tmp_path / "data"))
    assert left == {"build/plan.json", "prepared.json", "train/notes.txt"}


def test_the_manifest_is_published_after_the_facts_and_the_staging_folder_goes_last(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = locate(tmp_path / "data")
    manifest = prepare(source, root, OPTIONS).manifest
    destination = Destination(root, source, OPTIONS)
    destination.claim()
    steps: list[str] = []
    write, delete = Location.write, Location.delete

    def recorded_write(self: Location, data: bytes) -> None:
        steps.append(self.name)
        write(self, data)

    def recorded_delete(self: Location) -> None:
        steps.append(f"-{self.name}")
        delete(self)

    monkeypatch.setattr(Location, "write", recorded_write)
    monkeypatch.setattr(Location, "delete", recorded_delete)
    with Ownership(destination.build / "owner.json", root) as owner:
        destination.publish(manifest, {"bad_files": 0}, owner)

    assert steps == ["prepared.json", "dataset.json", "-build"]
    assert read_manifest(root) == manifest


def test_a_report_of_an_earlier_attempt_is_deleted_where_nothing_is_left_out(source: Source, tmp_path: Path) -> None:
    destination = Destination(locate(tmp_path / "data"), source, Options(on_bad="skip"))
    destination.report_bad_files([BadFile("cat/0.jpg", "the image is empty (0 bytes)")])
    assert list(objects(tmp_path / "data")) == ["bad.jsonl"]

    destination.report_bad_files([])
    assert not objects(tmp_path / "data")


def test_the_first_bad_file_is_named_and_the_others_counted(source: Source, tmp_path: Path) -> None:
    destination = Destination(locate(tmp_path / "data"), source, Options(on_bad="fail"))
    bad = [BadFile(f"cat/{n}.jpg", "the image is empty (0 bytes)") for n in range(3)]
    with pytest.raises(DatasetError, match=r"cat/0\.jpg and 2 more cannot be a sample: the image is empty"):
        destination.report_bad_files(bad)
    assert list(objects(tmp_path / "data")) == ["bad.jsonl"]


def test_a_destination_that_cannot_be_written_is_named(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise FileNotFoundError("no bucket")

    monkeypatch.setattr(type(locate("memory://nowhere").filesystem), "pipe_file", missing)
    with pytest.raises(StorageError, match=r"cannot write memory://nowhere/\S+: its bucket or parent does not exist"):
        Destination(locate("memory://nowhere"), source, OPTIONS).claim()


def test_what_is_in_the_way_is_named_without_listing_all_of_it(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Billion:
        """A folder of so many objects that to list them all would take an hour."""

        def __init__(self) -> None:
            self.named = 0

        def first(self, *_: object) -> Iterator[str]:
            for number in range(10**9):
                self.named += 1
                yield f"{number % 7}/{number}.jpg"

    def all_of_it(self: Location) -> None:
        raise AssertionError(f"{self} is listed whole")

    there = Billion()
    monkeypatch.setattr("stoker.storage.location.first_objects", there.first)
    monkeypatch.setattr(Location, "walk", all_of_it)
    monkeypatch.setattr(Location, "children", all_of_it)
    destination = Destination(locate(tmp_path / "data"), source, OPTIONS)
    with pytest.raises(DatasetError, match=r"data is not empty \(0, 1, 2, \.\.\.\) and holds no data set"):
        destination.holds_dataset(on_threads(), replaces=False)
    assert there.named <= 1000
