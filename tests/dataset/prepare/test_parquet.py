"""Parquet as model hubs keep image data sets, and its shuffle through external memory."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conftest import Store
from images import encoded, make, objects, run_here, samples
from sources import NAMES, hub_schema, write_hub
from stoker.dataset.prepare import Options, on_threads, open_source, prepare
from stoker.dataset.prepare.shards import build_shard
from stoker.errors import DatasetError
from stoker.storage import locate

PLAIN = Options(jpeg="original", shard_samples=6)


def write_flat(file: Path, columns: dict[str, list[Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), file)
    return file


def pictures(numbers: Iterable[int]) -> set[tuple[str, bytes]]:
    return {(NAMES[n % 3], encoded(n)) for n in numbers}


def content(found: list[tuple[str, str, bytes]]) -> set[tuple[str, bytes]]:
    return {(name, data) for _, name, data in found}


def test_splits_by_file_name_and_class_names_of_the_hub(tmp_path: Path) -> None:
    for shard in range(2):
        write_hub(tmp_path / "hub" / "data" / f"train-{shard:05d}-of-00002.parquet", range(20 * shard, 20 * shard + 20))
    write_hub(tmp_path / "hub" / "data" / "validation-00000-of-00001.parquet", range(100, 113))
    write_hub(tmp_path / "hub" / "data" / "test-00000-of-00001.parquet", range(200, 204), [-1, -1, None, -1])

    code = make(tmp_path / "hub", tmp_path / "data", PLAIN)

    assert code.manifest.classes == NAMES
    found = samples(code)
    assert content(found["train"]) == pictures(range(40))
    assert "data/train-00001-of-00002_parquet/7" in {key for key, _, _ in found["train"]}
    assert content(found["validation"]) == pictures(range(100, 113))
    assert code.notes == ("left out the split test: none of its 4 rows has a class",)
    assert not (tmp_path / "data" / "build").exists()


def test_splits_by_folder_a_pattern_and_a_single_file(tmp_path: Path) -> None:
    write_hub(tmp_path / "default" / "train" / "0000.parquet", range(12))
    write_hub(tmp_path / "default" / "val" / "0000.parquet", range(100, 106))
    by_folder = open_source(str(tmp_path / "default"), PLAIN)
    assert {name: len(entries) for name, entries in by_folder.splits.items()} == {"train": 12, "validation": 6}
    by_pattern = open_source(f"{tmp_path}/default/tr*/*.parquet", PLAIN)
    assert {name: len(entries) for name, entries in by_pattern.splits.items()} == {"train": 12}
    single = make(tmp_path / "default" / "train" / "0000.parquet", tmp_path / "data", PLAIN)
    assert {name: split.samples for name, split in single.manifest.splits.items()} == {"train": 9, "validation": 3}


def test_bytes_of_their_own_and_names_for_labels_need_no_metadata(tmp_path: Path) -> None:
    rows = {"jpeg": [encoded(n) for n in range(9)], "class": [NAMES[n % 3] for n in range(9)]}
    made = make(
        write_flat(tmp_path / "a.parquet", rows), tmp_path / "data", Options(jpeg="original", validation_fraction=0)
    )
    assert content(samples(made)["train"]) == pictures(range(9))


def test_the_shuffle_is_global_and_its_bytes_hang_on_no_thread(tmp_path: Path) -> None:
    for shard in range(4):
        write_hub(tmp_path / "hub" / f"train-{shard:05d}.parquet", range(30 * shard, 30 * shard + 30))
    small = Options(jpeg="original", shard_mb=0.02, validation_fraction=0)  # spills of 40 kB: about two row groups
    one = make(tmp_path / "hub", tmp_path / "one", small, map_=on_threads(1))
    make(tmp_path / "hub", tmp_path / "five", small, map_=on_threads(5))
    other = make(
        tmp_path / "hub", tmp_path / "other", Options(jpeg="original", shard_mb=0.02, validation_fraction=0, seed=1)
    )

    assert objects(tmp_path / "one") == objects(tmp_path / "five")
    assert other.manifest.fingerprint != one.manifest.fingerprint
    assert content(samples(one)["train"]) == pictures(range(120))
    for shard in one.manifest.split("train").shards:
        assert shard.samples >= 5
    files = [key.partition("/")[0] for key, _, _ in samples(one)["train"]][:16]
    assert len(set(files)) == 4


def test_without_a_shuffle_the_rows_stay_in_their_order(tmp_path: Path) -> None:
    write_hub(tmp_path / "hub" / "train-00000.parquet", range(23))
    made = make(
        tmp_path / "hub",
        tmp_path / "data",
        Options(jpeg="original", shard_samples=4, validation_fraction=0, shuffles=False),
    )
    assert [data for _, _, data in samples(made)["train"]] == [encoded(n) for n in range(23)]


def test_interrupted_in_either_pass_it_ends_the_same_and_does_nothing_twice(tmp_path: Path) -> None:
    write_hub(tmp_path / "hub" / "train-00000.parquet", range(100))
    small = Options(jpeg="original", shard_mb=0.02)
    whole = make(tmp_path / "hub", tmp_path / "whole", small)

    class Stopped(Exception):
        pass

    def stopped_after(count: int) -> Any:
        left = [count]

        def run(build: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[Any]:
            for task in tasks:
                if left[0] == 0:
                    raise Stopped
                left[0] -= 1
                yield build(task)

        return run

    data = tmp_path / "data"
    with pytest.raises(Stopped):
        make(tmp_path / "hub", data, small, map_=stopped_after(3))
    spills = {p: p.stat().st_mtime_ns for p in (data / "build" / "spill").glob("*.bin")}
    assert len(spills) == 3
    with pytest.raises(Stopped):
        make(tmp_path / "hub", data, small, map_=stopped_after(14))
    assert {p: p.stat().st_mtime_ns for p in spills} == spills
    done = len(list((data / "build" / "train").glob("*.json")))
    assert done >= 1
    made = make(tmp_path / "hub", data, small)
    assert made.shards_kept >= done
    assert made.manifest == whole.manifest
    assert objects(data) == objects(tmp_path / "whole")


def test_a_damaged_spill_is_never_taken_for_images_and_fixed_by_the_same_command(tmp_path: Path) -> None:
    write_hub(tmp_path / "hub" / "train-00000.parquet", range(60))
    small = Options(jpeg="original", shard_mb=0.02)
    spoiled: list[Path] = []

    def spoils(build: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[Any]:
        for task in tasks:
            if build is build_shard and not spoiled:
                spoiled.append(tmp_path / "data" / "build" / "spill" / "000001.bin")
                changed = bytearray(spoiled[0].read_bytes())
                changed[len(changed) // 2] ^= 255
                spoiled[0].write_bytes(changed)
            yield build(task)

    root = locate(tmp_path / "data", timeout_s=0.2)
    source = open_source(str(tmp_path / "hub"), small)
    with pytest.raises(DatasetError, match=r"000001\.bin: bytes \d+ to \d+ are not what was written; run the same"):
        prepare(source, root, small, map=spoils)
    assert not (tmp_path / "data" / "dataset.json").exists()

    made = make(tmp_path / "hub", tmp_path / "data", small)
    assert made.manifest == make(tmp_path / "hub", tmp_path / "fresh", small).manifest


def test_rows_without_an_image_or_a_class_are_bad_files(tmp_path: Path) -> None:
    rows = [{"bytes": encoded(n), "path": None} for n in range(8)]
    rows[3] = {"bytes": None, "path": "elsewhere.jpg"}
    rows[4]["bytes"] = b"no picture"
    table = pa.table({"image": rows, "label": [0, 1, 0, 1, 0, None, 0, 1]}, schema=hub_schema())
    pq.write_table(table, tmp_path / "train.parquet")
    made = make(
        tmp_path / "train.parquet", tmp_path / "data", Options(jpeg="original", on_bad="skip", validation_fraction=0)
    )
    reasons = {bad.path: bad.reason for bad in made.bad}
    assert reasons["train.parquet/3"] == "the image is empty (0 bytes)"
    assert "not an image" in reasons["train.parquet/4"]
    assert reasons["train.parquet/5"] == "no class: label is null or negative"
    assert made.manifest.split("train").samples == 5


@pytest.mark.store
def test_files_on_the_store_are_read_by_exact_ranges(store: Store, tmp_path: Path) -> None:
    root = locate(store.fresh("parquet"))
    file = write_hub(tmp_path / "train-00000.parquet", range(40))
    (root / "hub" / file.name).write(file.read_bytes())
    remote = make(f"{root}/hub", f"{root}/data", PLAIN)
    (tmp_path / "hub").mkdir()
    file.rename(tmp_path / "hub" / file.name)
    here = make(tmp_path / "hub", tmp_path / "data", PLAIN)
    assert remote.manifest == here.manifest
    assert not [path for path, size in (root / "data" / "build").walk() if size]


@pytest.mark.parametrize(
    ("columns", "more", "words"),
    [
        ({"a": "image", "b": "image", "label": "number"}, (), "several columns (a, b) could be what holds images"),
        (
            {"a": "image", "x": "number", "y": "number"},
            (),
            "no column that clearly holds labels; choose with --label-column",
        ),
        ({"a": "number", "label": "number"}, (), "no column that clearly holds images"),
        ({"a": "image", "label": "number"}, ("--image-column", "b"), "--image-column b: "),
        ({"a": "image", "label": "number"}, ("--image-column", "label"), "it holds int64, not bytes; a does"),
        ({"a": "image", "label": "half"}, (), "the column label holds list<element: int64>, not numbers or names"),
    ],
)
def test_columns_that_cannot_be_told_get_one_line(
    columns: dict[str, str],
    more: tuple[str, ...],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    values: dict[str, list[Any]] = {"image": [encoded(1), encoded(2)], "number": [0, 1], "half": [[1], [2]]}
    write_flat(tmp_path / "a.parquet", {name: values[kind] for name, kind in columns.items()})
    code, _, err = run_here(monkeypatch, capfd, tmp_path / "a.parquet", tmp_path / "data", *more)
    assert (code, err.count("\n")) == (2, 1), err
    assert words in err
    assert not (tmp_path / "data").exists()


def test_files_that_are_none_or_do_not_belong_get_one_line(tmp_path: Path) -> None:
    write_hub(tmp_path / "hub" / "train-0.parquet", range(6))
    (tmp_path / "hub" / "train-1.parquet").write_bytes(b"PAR1 but not really PAR1")
    with pytest.raises(DatasetError, match=r"train-1\.parquet: cannot be read as Parquet"):
        open_source(str(tmp_path / "hub"), PLAIN)
    (tmp_path / "hub" / "train-1.parquet").rename(tmp_path / "hub" / "extra.parquet")
    with pytest.raises(DatasetError, match=r"extra\.parquet: its name has no split, while others have train"):
        open_source(str(tmp_path / "hub"), PLAIN)
    with pytest.raises(DatasetError, match=r"no Parquet files at .*none-\*\.parquet"):
        open_source(f"{tmp_path}/hub/none-*.parquet", PLAIN)
    write_hub(tmp_path / "few" / "train.parquet", [1, 2], [0, 7])
    with pytest.raises(DatasetError, match="label goes up to 7, but its metadata names 3 classes"):
        open_source(str(tmp_path / "few"), PLAIN)
