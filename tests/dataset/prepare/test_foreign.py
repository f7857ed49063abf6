"""What prepare did not write is never overwritten or deleted, and a source never through a link to it."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest

from images import make, make_folder, objects
from stoker.dataset.prepare import Options
from stoker.errors import DatasetError

SMALL = Options(jpeg="original", shard_samples=2)
COPIED = Options(jpeg="original", shard_samples=2, copies=True)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "photos", {"cat": 3, "dog": 3})


def tars_at(place: Path, photos: Path) -> Path:
    """Somebody's tars, which happen to be called as shards are."""
    made = place.with_name(f"{place.name}-made")
    make(photos, made, SMALL)
    (place / "train").mkdir(parents=True)
    for shard in sorted((made / "train").glob("*.tar")):
        shard.rename(place / "train" / shard.name)
    return place


def unchanged(place: Path, before: dict[str, bytes]) -> bool:
    now = objects(place)
    return all(now.get(name) == content for name, content in before.items())


@pytest.mark.parametrize("name", ["bad.jsonl", "duplicates.jsonl", "prepared.json"])
def test_a_file_with_the_name_of_a_report_is_not_taken_for_one(name: str, photos: Path, tmp_path: Path) -> None:
    tars = tars_at(tmp_path / "tars", photos)
    (tars / name).write_text("mine")
    before = objects(tars)
    with pytest.raises(DatasetError, match=rf"{name} is in the way"):
        make(tars, tars)
    assert objects(tars) == before


def test_what_else_is_in_a_build_folder_stays_there(photos: Path, tmp_path: Path) -> None:
    tars = tars_at(tmp_path / "tars", photos)
    (tars / "build" / "lib").mkdir(parents=True)
    (tars / "build" / "thesis.txt").write_text("mine")
    (tars / "build" / "lib" / "x.json").write_text("mine")
    before = objects(tars)
    for _ in range(2):
        make(tars, tars)
        assert unchanged(tars, before)
        assert sorted(objects(tars / "build")) == ["lib/x.json", "thesis.txt"], "and what was staged is gone"
    project = tmp_path / "project"
    (project / "build").mkdir(parents=True)
    (project / "build" / "x.o").write_text("mine")
    make(photos, project, SMALL, replaces=True)
    assert sorted(objects(project / "build")) == ["x.o"]


@pytest.mark.parametrize("indexed", ["no", "here", "here by a link", "elsewhere", "here and then others"])
def test_tars_that_stoker_did_not_write_are_not_replaced(indexed: str, photos: Path, tmp_path: Path) -> None:
    tars, link = tars_at(tmp_path / "tars", photos), tmp_path / "link"
    link.symlink_to(tars)
    before = objects(tars)
    if indexed == "here":
        make(tars, tars)
    elif indexed == "here by a link":
        make(tars, link, replaces=True)
    elif indexed == "elsewhere":
        make(tars, tmp_path / "index")
    elif indexed == "here and then others":
        make(tars, tars)
        others = make_folder(tmp_path / "cows", {"cow": 4, "pig": 4}, first=20)
        make(tars_at(tmp_path / "others", others), tars, replaces=True)
    with pytest.raises(DatasetError, match="stoker did not write"):
        make(photos, link, SMALL, replaces=True)
    assert unchanged(tars, before)


@pytest.mark.parametrize("following", ["photos", "other tars"])
def test_tars_that_lie_where_indexes_are_written_are_not_deleted_with_these(
    following: str, photos: Path, tmp_path: Path
) -> None:
    place = tmp_path / "place"
    tars = tars_at(place / "index", photos)
    before = {name: content for name, content in objects(tars).items() if name.endswith(".tar")}
    make(tars, place, replaces=True)
    if following == "other tars":
        others = make_folder(tmp_path / "cows", {"cow": 4, "pig": 4}, first=20)
        make(tars_at(tmp_path / "others", others), place, replaces=True)
    else:
        with contextlib.suppress(DatasetError):
            make(photos, place, SMALL, replaces=True)
    assert unchanged(tars, before)


def test_a_data_set_of_ours_is_replaced_as_ever(photos: Path, tmp_path: Path) -> None:
    other = make_folder(tmp_path / "other", {"cow": 4, "pig": 4}, first=20)
    make(photos, tmp_path / "data", SMALL)
    make(other, tmp_path / "data", SMALL, replaces=True)
    make(other, tmp_path / "fresh", SMALL)
    assert objects(tmp_path / "data") == objects(tmp_path / "fresh")


def linked_tars(data: Path, at: Path) -> Path:
    (at / "train").mkdir(parents=True)
    for shard in sorted((data / "train").glob("*.tar")):
        (at / "train" / shard.name).symlink_to(shard)
    return at


def linked_split(data: Path, at: Path) -> Path:
    at.mkdir()
    (at / "train").symlink_to(data / "train")
    return at


@pytest.mark.parametrize("how", [linked_tars, linked_split])
@pytest.mark.parametrize("options", [COPIED, SMALL], ids=["copied", "indexed"])
def test_a_data_set_that_is_read_through_links_is_not_replaced(
    how: object, options: Options, photos: Path, tmp_path: Path
) -> None:
    make(photos, tmp_path / "data", SMALL)
    before = objects(tmp_path / "data")
    source = how(tmp_path / "data", tmp_path / "source")  # type: ignore[operator]
    with pytest.raises(DatasetError, match=r"choose (another destination|a destination elsewhere)"):
        make(source, tmp_path / "data", options, replaces=True)
    assert objects(tmp_path / "data") == before


def test_a_folder_of_the_destination_that_leads_to_the_source_is_refused(photos: Path, tmp_path: Path) -> None:
    tars, place = tars_at(tmp_path / "tars", photos), tmp_path / "place"
    place.mkdir()
    (place / "train").symlink_to(tars / "train")
    before = objects(tars)
    with pytest.raises(DatasetError, match=r"place/train in the destination leads to .*tars/train, which is read"):
        make(tars, place, COPIED, replaces=True)
    assert objects(tars) == before


def test_links_in_a_circle_are_followed_once(photos: Path, tmp_path: Path) -> None:
    (photos / "cat" / "again").symlink_to(photos)
    make(make_folder(tmp_path / "other", {"cow": 2, "pig": 2}), tmp_path / "data", SMALL)
    make(photos, tmp_path / "data", Options(jpeg="original", shard_samples=2, on_bad="skip"), replaces=True)


@pytest.mark.parametrize("plan", ["[" * 100_000, "[]", "7", '{"folders": 7}', "\xff"])
def test_a_plan_that_is_none_is_none(plan: str, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "data" / "build").mkdir(parents=True)
    (tmp_path / "data" / "build" / "plan.json").write_text(plan, encoding="latin-1")
    make(photos, tmp_path / "data", SMALL)
    assert json.loads((tmp_path / "data" / "dataset.json").read_text())["classes"] == ["cat", "dog"]
