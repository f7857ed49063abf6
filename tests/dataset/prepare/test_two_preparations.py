"""Two preparations at one destination, one after the other or at once: what the second may not do to the first."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from images import make, make_folder, objects
from stoker.dataset.prepare import Options
from stoker.dataset.prepare.ownership import Ownership
from stoker.errors import DatasetError
from stoker.storage import Location

ONE = Options(jpeg="original", shard_samples=3)
OTHER = Options(jpeg="original", shard_samples=3, seed=7)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "images", {"cat": 6, "dog": 6})


def finishes_while_it_waits(monkeypatch: pytest.MonkeyPatch, folder: Path, data: Path, options: Options) -> None:
    """Let another preparation finish after the next one has looked at the destination, before it owns it."""
    take, is_first = Ownership._take, [True]

    def slow(self: Ownership) -> bool:
        if is_first.pop() if is_first else False:
            make(folder, data, options)
        return take(self)

    monkeypatch.setattr(Ownership, "_take", slow)


def test_a_data_set_that_is_finished_while_one_with_other_options_waits_is_kept(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finishes_while_it_waits(monkeypatch, folder, tmp_path / "data", ONE)
    with pytest.raises(DatasetError, match="holds another data set already"):
        make(folder, tmp_path / "data", OTHER)
    make(folder, tmp_path / "fresh", ONE)
    assert objects(tmp_path / "data") == objects(tmp_path / "fresh")


def test_a_data_set_that_is_finished_while_the_same_waits_is_not_made_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finishes_while_it_waits(monkeypatch, folder, tmp_path / "data", ONE)
    assert make(folder, tmp_path / "data", ONE).was_there
    make(folder, tmp_path / "fresh", ONE)
    assert objects(tmp_path / "data") == objects(tmp_path / "fresh")


def test_a_preparation_owns_the_destination_until_its_data_set_is_published(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, owned, write = tmp_path / "data", {}, Location.write

    def noted(self: Location, content: bytes) -> None:
        owned[self.name] = (data / "build" / "owner.json").exists()
        write(self, content)

    monkeypatch.setattr(Location, "write", noted)
    make(folder, data, ONE)
    assert owned["dataset.json"]
    assert owned["prepared.json"]
    assert all(owned.values())
    assert not (data / "build").exists()
    assert "stoker-owner" not in {thread.name for thread in threading.enumerate()}


def test_one_that_was_taken_over_writes_no_further_shard(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter, owners, built = Ownership.__enter__, list[Ownership](), [0]

    def entered(self: Ownership) -> Ownership:
        owners.append(self)
        return enter(self)

    def taken_over(build: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[Any]:
        for task in tasks:
            built[0] += 1
            yield build(task)
            owners[0]._is_lost = True

    monkeypatch.setattr(Ownership, "__enter__", entered)
    with pytest.raises(DatasetError, match="another preparation took over"):
        make(folder, tmp_path / "data", ONE, map_=taken_over)
    assert built[0] == 2
    assert (tmp_path / "data" / "build" / "owner.json").exists()


@pytest.mark.parametrize(("last", "is_published"), [("prepared.json", False), ("dataset.json", True)])
def test_one_that_is_taken_over_at_the_end_leaves_what_the_other_has_staged(
    last: str, is_published: bool, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter, write, owners, data = Ownership.__enter__, Location.write, list[Ownership](), tmp_path / "data"

    def entered(self: Ownership) -> Ownership:
        owners.append(self)
        return enter(self)

    def taken_over_after(self: Location, content: bytes) -> None:
        write(self, content)
        if self.name == last:
            owners[0]._is_lost = True

    monkeypatch.setattr(Ownership, "__enter__", entered)
    monkeypatch.setattr(Location, "write", taken_over_after)
    with pytest.raises(DatasetError, match="another preparation took over"):
        make(folder, data, ONE)
    assert (data / "dataset.json").exists() is is_published
    assert (data / "build" / "owner.json").exists()


def test_an_unfinished_copy_of_tars_is_not_taken_over_by_an_index_of_them(folder: Path, tmp_path: Path) -> None:
    made = make(folder, tmp_path / "made", ONE)
    tars = tmp_path / "tars"
    tars.mkdir()
    for number, shard in enumerate(made.manifest.split("train").shards):
        (tmp_path / "made" / shard.path).rename(tars / f"train-{number:06d}.tar")

    class Stopped(Exception):
        pass

    def first(build: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[Any]:
        yield build(next(iter(tasks)))
        raise Stopped

    copied = replace(ONE, copies=True)
    with pytest.raises(Stopped):
        make(tars, tmp_path / "data", copied, map_=first)
    left = objects(tmp_path / "data")
    with pytest.raises(DatasetError, match=r"with another copies \(True, now False\); finish it with the same options"):
        make(tars, tmp_path / "data", ONE)
    assert objects(tmp_path / "data") == left
    make(tars, tmp_path / "data", ONE, replaces=True)
    make(tars, tmp_path / "fresh", ONE)
    assert objects(tmp_path / "data") == objects(tmp_path / "fresh")
