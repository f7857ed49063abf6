"""One preparation at a destination at a time; a dead one is taken over, a live one never, whatever happens when."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import Store
from images import make, make_folder, objects
from stoker.dataset.prepare import Options
from stoker.dataset.prepare.ownership import Ownership
from stoker.errors import DatasetError
from stoker.storage import Conflict, Location, locate


class Preparation(Ownership):
    """An owner whose beats the test makes; it goes away only when the test says so."""

    def __init__(self, root: Location, pause: Callable[[float], Any] = lambda _: None) -> None:
        super().__init__(root / "owner.json", root, beat_s=3600, pause=pause)

    def take(self) -> Preparation:
        while not self._take():
            pass
        return self

    def beat(self) -> None:
        try:
            self._swap(self._version)
        except Conflict:
            self._is_lost = True


def test_a_live_owner_is_named_and_left_alone(tmp_path: Path) -> None:
    first = Preparation(locate(tmp_path)).take()
    with pytest.raises(DatasetError, match=r"is being prepared by process \d+ on \S+; wait for it"):
        Preparation(locate(tmp_path), lambda _: first.beat()).take()
    first.check()


def test_an_owner_that_does_not_renew_is_taken_over_and_learns_it(tmp_path: Path) -> None:
    first, second = Preparation(locate(tmp_path)).take(), Preparation(locate(tmp_path)).take()
    second.check()
    first.beat()
    with pytest.raises(DatasetError, match="took over while this one was suspended"):
        first.check()


def test_it_is_watched_for_three_beats(tmp_path: Path) -> None:
    waited: list[float] = []
    Preparation(locate(tmp_path)).take()
    Preparation(locate(tmp_path), waited.append).take()
    assert sum(waited) == 3 * 3600


def test_a_killed_process_of_this_machine_is_taken_over_at_once(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from stoker.dataset.prepare.ownership import Ownership\n"
        "from stoker.storage import locate\n"
        "root = locate(sys.argv[1])\n"
        "with Ownership(root / 'owner.json', root): os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, timeout=60)
    assert (tmp_path / "owner.json").exists()
    waited: list[float] = []
    Preparation(locate(tmp_path), waited.append).take()
    assert waited == []


@pytest.mark.parametrize("changed", [{"host": "elsewhere"}, {"boot": "another"}, {"boot": ""}, {"pid": "no number"}])
def test_a_process_that_may_be_elsewhere_is_watched(tmp_path: Path, changed: dict[str, object]) -> None:
    Preparation(locate(tmp_path)).take()
    file = tmp_path / "owner.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pid": 2**22 + 5} | changed))
    waited: list[float] = []
    Preparation(locate(tmp_path), waited.append).take()
    assert len(waited) == 6


def test_a_damaged_file_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "owner.json").write_bytes(b"{")
    Preparation(locate(tmp_path)).take().check()


def test_an_owner_that_ends_leaves_nothing_and_one_that_lost_leaves_the_others_file(tmp_path: Path) -> None:
    root = locate(tmp_path)
    with Ownership(root / "owner.json", root):
        assert (tmp_path / "owner.json").exists()
    assert not (tmp_path / "owner.json").exists()
    with Ownership(root / "owner.json", root, beat_s=3600):
        second = Preparation(root).take()
    second.beat()
    second.check()


@pytest.mark.store
def test_a_store_has_one_winner_too(store: Store) -> None:
    root = locate(store.fresh("owner"))
    first = Preparation(root).take()
    with pytest.raises(DatasetError, match="is being prepared by"):
        Preparation(root, lambda _: first.beat()).take()
    second = Preparation(root).take()
    first.beat()
    second.check()
    with pytest.raises(DatasetError):
        first.check()


def contend(root: Location, times: int) -> None:
    """Owners live, stop, wake up again and end at random, and newcomers come at any moment, also two at once."""
    draw, owners = random.Random(times), [Preparation(root).take()]

    def live() -> list[Preparation]:
        return [owner for owner in owners if not owner._is_lost]

    for _ in range(times):
        current, beats, rival = owners[-1], draw.random() < 0.5, draw.random() < 0.2

        def pause(_: float, current: Preparation = current, beats: bool = beats, rival: bool = rival) -> None:
            if beats and draw.random() < 0.5:
                current.beat()
            if rival and draw.random() < 0.3 and owners[-1] is current and not beats:
                owners.append(Preparation(root).take())

        newcomer = Preparation(root, pause)
        before = json.loads((root / "owner.json").read())
        try:
            owners.append(newcomer.take())
        except DatasetError:
            after = json.loads((root / "owner.json").read())
            assert after["token"] != before["token"] or after["beat"] > before["beat"], "refused by a live one only"
        for owner in owners:  # all that were suspended wake up
            owner.beat()
        assert len(live()) == 1
        assert live()[0]._token == json.loads((root / "owner.json").read())["token"]
        owners[:] = live()


def test_there_is_one_owner_at_any_time(tmp_path: Path) -> None:
    contend(locate(tmp_path), 100)


@pytest.mark.long
def test_there_is_one_owner_through_a_thousand_takeovers(tmp_path: Path) -> None:
    contend(locate(tmp_path), 1000)


class Killed(Exception):
    pass


def take_over(folder: Path, times: int) -> None:
    """Preparations with the one or the other options, killed at random: none ever ends with a mixture."""
    source = make_folder(folder / "images", {"cat": 6, "dog": 6})
    choices = [Options(jpeg="original", shard_samples=3, seed=seed) for seed in (0, 7)]
    fresh = [objects(Path(make(source, folder / f"fresh-{n}", one).root.url)) for n, one in enumerate(choices)]
    draw, data, running, finished = random.Random(times), folder / "data", None, 0
    for _ in range(times):
        number, dies_at, replaces = draw.randrange(2), draw.choice([None, 0, 1, 2, 3]), draw.random() < 0.2

        def some(build: Callable[[Any], Any], tasks: Iterable[Any], dies_at: int | None = dies_at) -> Iterator[Any]:
            for at, task in enumerate(tasks):
                if at == dies_at:
                    raise Killed
                yield build(task)

        try:
            make(source, data, choices[number], map_=some, replaces=replaces)
        except Killed:
            assert running in (None, number) or replaces
            running = number
        except DatasetError:
            assert running not in (None, number)
            assert not replaces
        else:
            assert running in (None, number) or replaces
            assert objects(data) == fresh[number]
            finished, running = finished + 1, None
            subprocess.run(["rm", "-r", str(data)], check=True)
    assert finished


def test_an_unfinished_preparation_is_finished_by_its_own_options_alone(tmp_path: Path) -> None:
    take_over(tmp_path, 25)


@pytest.mark.long
def test_a_thousand_takeovers_of_preparations_end_with_the_bytes_of_one(tmp_path: Path) -> None:
    take_over(tmp_path, 1000)
