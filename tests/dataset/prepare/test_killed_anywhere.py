"""A preparation that is killed before any of its writes: the next one ends with the bytes of one that was not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from images import make, make_folder, objects
from stoker.dataset.prepare import Options, on_threads, ownership
from stoker.storage import Location

OLD = Options(jpeg="original", shard_samples=2)
NEW = Options(jpeg="original", shard_samples=4, validation_fraction=0)
_CHANGES = ("write", "create", "swap", "delete")


class Killed(BaseException):
    pass


class Process:
    """Counts what a process changes on the store; dies before the change ``dies_at`` and changes nothing after it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done, self.dies_at = 0, -1
        for name in _CHANGES:
            monkeypatch.setattr(Location, name, self._counted(getattr(Location, name)))
        monkeypatch.setattr(ownership, "_is_gone", lambda _: True)
        monkeypatch.setattr(ownership.Ownership, "_renew", lambda _: None)  # a beat at any moment is a change too

    def _counted(self, change: Any) -> Any:
        def counted(place: Location, *arguments: Any) -> None:
            if self.done == self.dies_at:
                raise Killed
            self.done += 1
            change(place, *arguments)

        return counted

    def run(self, *arguments: Any, dies_at: int = -1, **options: Any) -> bool:
        """Prepare; whether it was killed."""
        self.done, self.dies_at = 0, dies_at
        try:
            make(*arguments, map_=on_threads(1), **options)
        except Killed:
            return True
        finally:
            self.dies_at = -1
        return False


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Process:
    return Process(monkeypatch)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A source with three splits."""
    for first, split in enumerate(("train", "validation", "test")):
        make_folder(tmp_path / "old" / split, {"cat": 3, "dog": 3}, first=10 * first)
    return tmp_path / "old"


@pytest.fixture
def new(tmp_path: Path) -> Path:
    """A source with one."""
    return make_folder(tmp_path / "new", {"cat": 4, "dog": 4}, first=100)


def test_replacing_a_data_set_is_finished_wherever_it_was_killed(
    old: Path, new: Path, tmp_path: Path, process: Process
) -> None:
    make(old, tmp_path / "published", OLD)
    make(new, tmp_path / "fresh", NEW)
    fresh, at = objects(tmp_path / "fresh"), 0
    while True:
        data = tmp_path / f"data-{at}"
        shutil.copytree(tmp_path / "published", data)
        was_killed = process.run(new, data, NEW, replaces=True, dies_at=at)
        assert not process.run(new, data, NEW, replaces=True)
        assert objects(data) == fresh, f"killed before change {at}"
        if not was_killed:
            break
        at += 1
    assert at > 20


def test_a_killed_one_is_finished_by_the_same_command_wherever_it_was(
    old: Path, tmp_path: Path, process: Process
) -> None:
    make(old, tmp_path / "fresh", OLD)
    fresh, at = objects(tmp_path / "fresh"), 0
    while process.run(old, tmp_path / f"data-{at}", OLD, dies_at=at):
        assert not process.run(old, tmp_path / f"data-{at}", OLD)
        assert objects(tmp_path / f"data-{at}") == fresh, f"killed before change {at}"
        at += 1
    assert at > 20


def test_a_killed_one_is_replaced_by_another_wherever_it_was(
    old: Path, new: Path, tmp_path: Path, process: Process
) -> None:
    make(new, tmp_path / "fresh", NEW)
    fresh, at = objects(tmp_path / "fresh"), 0
    while process.run(old, tmp_path / f"data-{at}", OLD, dies_at=at):
        assert not process.run(new, tmp_path / f"data-{at}", NEW, replaces=True)
        assert objects(tmp_path / f"data-{at}") == fresh, f"killed before change {at}"
        at += 1
    assert at > 20


@pytest.mark.parametrize("folder", ["../other/train", "", ".", "/etc", "memory://other", 7, None])
def test_a_plan_never_leads_out_of_its_destination(folder: object, new: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "train" / "000000.tar"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"another's")
    (tmp_path / "data" / "build").mkdir(parents=True)
    (tmp_path / "data" / "build" / "plan.json").write_text(json.dumps({"folders": [folder, "train"]}))
    (tmp_path / "data" / "000000.tar").write_bytes(b"a user's")
    make(new, tmp_path / "data", NEW, replaces=True)
    assert other.read_bytes() == b"another's"
    assert (tmp_path / "data" / "000000.tar").read_bytes() == b"a user's"
