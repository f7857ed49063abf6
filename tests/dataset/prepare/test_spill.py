"""The shuffle of a source that is only cheap to read in runs: what it writes, reads and holds, in one pass or more."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from images import encoded, objects
from stoker.dataset.prepare import Options, Prepared, on_threads, prepare
from stoker.dataset.prepare import spill as module
from stoker.dataset.prepare.entries import Entry, Listing
from stoker.dataset.prepare.plan import SplitPlan, plan_split
from stoker.dataset.prepare.shards import build_shard
from stoker.dataset.prepare.sources import Source
from stoker.dataset.prepare.spill import Spills, spill
from stoker.errors import DatasetError
from stoker.storage import Location, locate


class Stopped(Exception):
    pass


@dataclass(frozen=True)
class Runs:
    """Samples ``<run>/<number>`` whose bytes are made when they are read, a run at a time."""

    image: Callable[[int], bytes]

    def read(self, entry: Entry) -> bytes:
        raise AssertionError(f"{entry.path} is read alone")

    def read_run(self, entries: Sequence[Entry]) -> Iterator[bytes]:
        return (self.image(int(entry.path.rpartition("/")[2])) for entry in entries)

    def with_timeout(self, timeout_s: float) -> Runs:
        return self


def source_of(splits: dict[str, range], image: Callable[[int], bytes], run: int) -> Source:
    found = {}
    for split, numbers in splits.items():
        listing = Listing()
        for number in numbers:
            listing.add(f"{number // run}/{number}", number % 2, len(image(number)), offset=number // run)
        found[split] = listing.entries()
    return Source("memory://runs", ("cat", "dog"), found, Runs(image), has_runs=True)


def text(number: int) -> bytes:
    return b"%07d" % number * 200


def shuffled(source: Source, root: Location, shard: int) -> tuple[Spills, list[SplitPlan]]:
    """Shards of ``shard`` samples, spills of two."""
    options = Options(shard_samples=shard, shard_mb=1000.0)
    plans = [plan_split(split, entries, options) for split, entries in source.splits.items()]
    return spill(source, plans, root, on_threads(1), 2 * shard * len(text(0))), plans


def read_all(spills: Spills, plans: list[SplitPlan]) -> int:
    """Read each shard and check its samples: how many there are."""
    count = 0
    for plan in plans:
        for shard in plan.shards():
            reader = spills.reader(shard)
            for entry in shard.entries:
                assert reader.read(entry) == text(int(entry.path.rpartition("/")[2]))
                count += 1
    return count


# -- at the size of a terabyte, simulated ------------------------------------------------------------------------------


@given(st.integers(1, 10**7), st.integers(2, 5000))
@example(64, 8)
@example(65, 8)
def test_no_group_is_cut_into_more_smaller_ones_than_a_spill_may_have_segments(shards: int, fan_out: int) -> None:
    widths = module._widths(shards, fan_out)
    assert widths[-1] == 1
    wider = shards
    for width in widths:
        assert -(-wider // width) <= fan_out
        wider = width
    assert fan_out ** (len(widths) - 1) < shards or len(widths) == 1, "no pass more than that takes"


@pytest.mark.parametrize("shard_bytes", [64e6, 128e6, 512e6])
@pytest.mark.parametrize(("terabytes", "passes"), [(0.05, 1), (1, 2), (50, 2)])
def test_reads_of_terabytes_are_a_hundred_kilobytes_at_least_in_two_passes(
    shard_bytes: float, terabytes: float, passes: int
) -> None:
    shards, spill_bytes = int(terabytes * 1e12 / shard_bytes), 2 * shard_bytes
    widths = module._widths(shards, module._FAN_OUT)
    assert len(widths) <= passes
    for wider, width in zip([shards, *widths], widths, strict=False):
        assert spill_bytes / -(-wider // width) >= 100_000


def test_segments_hold_many_samples_where_in_one_pass_each_would_hold_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proportions of a terabyte, 1 : 500: four times more shards than a spill has samples."""
    source = source_of({"train": range(20_000)}, text, run=50)
    reads, read = [0], module._read_segment

    def counted(root: Location, segment: module.Segment) -> list[module.Sample]:
        reads[0] += 1
        return read(root, segment)

    monkeypatch.setattr(module, "_read_segment", counted)
    found = {}
    for fan_out in (10**6, 20):
        reads[0] = 0
        monkeypatch.setattr(module, "_FAN_OUT", fan_out)
        assert read_all(*shuffled(source, locate(tmp_path / str(fan_out)), shard=50)) == 20_000
        found[fan_out] = reads[0]
    assert found[10**6] > 0.8 * 20_000
    assert found[20] < 2 * 20_000 / 4.5


def test_the_memory_of_a_shuffle_does_not_grow_with_the_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def peak_of(samples: int) -> int:
        source = source_of({"train": range(samples)}, text, run=400)
        tracemalloc.start()
        try:
            shuffled(source, locate(tmp_path / str(samples)), shard=400)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    monkeypatch.setattr(module, "_FAN_OUT", 5)
    spill_bytes = 800 * len(text(0))
    one, two = peak_of(8_000), peak_of(32_000)
    assert two < 1.3 * one
    assert two < 5 * spill_bytes < 8_000 * len(text(0))


# -- in a whole preparation --------------------------------------------------------------------------------------------

SMALL = Options(jpeg="original", shard_mb=0.01)
SPLITS = {"train": range(90), "validation": range(90, 108)}


def make(
    data: Path, map_: Any = None, *, options: Options = SMALL, timeout_s: float = 60.0, replaces: bool = False
) -> Prepared:
    root = locate(data, timeout_s=timeout_s)
    return prepare(source_of(SPLITS, encoded, run=7), root, options, map=map_, replaces=replaces)


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, str]:
    """The objects of a data set that was made in one pass."""
    make(tmp_path / "whole")
    return objects(tmp_path / "whole")


@pytest.mark.parametrize(("fan_out", "passes"), [(7, 2), (4, 3), (2, 6)])
def test_any_number_of_passes_makes_the_same_data_set(
    fan_out: int, passes: int, whole: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FAN_OUT", fan_out)
    made = make(tmp_path / "data")
    assert objects(tmp_path / "data") == whole
    shards = sum(len(split.shards) for split in made.manifest.splits.values())
    assert len(module._widths(shards, fan_out)) == passes


def test_interrupted_anywhere_in_any_pass_it_ends_the_same_and_does_nothing_twice(
    whole: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FAN_OUT", 4)
    left, done = [0], list[str]()

    def stops(build: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[Any]:
        for task in tasks:
            if left[0] == 0:
                raise Stopped
            built = build(task)
            if not built.was_there:
                left[0] -= 1
                done.append(f"{build.__name__} {getattr(task, 'digest', '')}")
            yield built

    while True:
        left[0] = 3
        try:
            make(tmp_path / "data", stops)
            break
        except Stopped:
            assert not (tmp_path / "data" / "dataset.json").exists()
    assert objects(tmp_path / "data") == whole
    assert len(done) > 50
    assert len(done) == len(set(done))


@pytest.mark.parametrize("place", ["000001.bin", "pass-2/000001.bin", "pass-3/000002.bin"])
def test_a_damaged_spill_of_any_pass_is_rewritten_by_the_same_command(
    place: str, whole: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FAN_OUT", 4)
    damaged = tmp_path / "data" / "build" / "spill" / place

    def spoils(build: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[Any]:
        for task in tasks:
            built = build(task)
            if build is not build_shard and task.root / f"{task.number:06d}.bin" == locate(damaged, timeout_s=0.2):
                changed = bytearray(damaged.read_bytes())
                changed[len(changed) // 2] ^= 255
                damaged.write_bytes(changed)
            yield built

    with pytest.raises(DatasetError, match=rf"{place}: bytes \d+ to \d+ are not what was written; run the same comma"):
        make(tmp_path / "data", spoils, timeout_s=0.2)
    make(tmp_path / "data")
    assert objects(tmp_path / "data") == whole


def stops_at_shards(build: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[Any]:
    for task in tasks:
        if build is build_shard:
            raise Stopped
        yield build(task)


def test_spills_of_another_order_are_not_taken_for_ours(whole: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        make(tmp_path / "data", stops_at_shards, options=replace(SMALL, seed=7))
    make(tmp_path / "data", replaces=True)
    assert objects(tmp_path / "data") == whole


def test_spills_of_other_groups_or_of_an_earlier_version_are_written_again(
    whole: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Stopped):
        make(tmp_path / "data", stops_at_shards)
    first = tmp_path / "data" / "build" / "spill" / "000000.json"
    record = json.loads(first.read_text())
    record["shards"] = record.pop("groups")
    first.write_text(json.dumps(record))
    monkeypatch.setattr(module, "_FAN_OUT", 4)
    make(tmp_path / "data")
    assert objects(tmp_path / "data") == whole
