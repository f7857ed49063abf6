"""The selection of samples and their splits: keys, the held-out part, the limit, duplicates, the order."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from images import encoded, make, make_folder, run_here, samples
from stoker.dataset.prepare import Entries, Options, open_source
from stoker.dataset.prepare.entries import Listing
from stoker.dataset.prepare.plan import plan_split
from stoker.dataset.prepare.select import held_out, select
from stoker.errors import DatasetError

PLAIN = Options(jpeg="original", shard_samples=6)


def listing(paths: list[str], labels: list[int] | None = None) -> Entries:
    made = Listing()
    for number, path in enumerate(paths):
        made.add(path, labels[number] if labels else 0, 1000)
    return made.entries()


# -- keys and the held-out part ----------------------------------------------------------------------------------------


def test_keys_are_unique_short_and_without_dots() -> None:
    long = "long" * 40
    paths = ["a/x.jpg", "a/x.png", "a.b/x.jpg", "a_b/x.jpg", f"{long}/1.jpg", f"{long}/2.jpg", "ü/ß.é.png"]
    paths += ["s3://bucket/c/x.jpg", "/root/x.jpg", "../up/x.jpg"]
    keys = [entry.key for entry in listing(paths)]
    assert len(set(keys)) == len(paths)
    assert all("." not in key and not key.startswith("/") and len(key.encode()) <= 90 for key in keys)
    assert keys[0] == "a/x"
    assert keys[7:9] == ["s3/bucket/c/x", "root/x"]


def test_a_name_that_is_not_utf8_has_a_key_of_its_own_that_is() -> None:
    paths = ["a/\udcff.jpg", "a/\udcfe.jpg", "a/\\xff.jpg", "a/" + "\udcff" * 90, "a/" + "\udcff" * 91]
    entries = list(listing(paths))
    keys = [entry.key for entry in entries]
    assert keys[:2] == ["a/\\xff", "a/\\xfe"]
    assert len(set(keys)) == len(paths)
    assert all(len(key.encode()) <= 90 for key in keys)
    assert [entry.path for entry in entries] == paths
    assert [entry.shown_path for entry in entries[:3]] == ["a/\\xff.jpg", "a/\\xfe.jpg", "a/\\xff.jpg"]


def test_half_a_surrogate_pair_in_a_name_is_refused_and_named() -> None:
    with pytest.raises(DatasetError, match=r"'a/\\ud800\.jpg': this file's name is not UTF-8; rename it"):
        listing(["a/\ud800.jpg"])


def test_what_is_held_out_is_a_share_of_each_class_never_all_and_does_not_hang_on_the_order() -> None:
    def chosen(paths: list[str], fraction: float, seed: int = 0) -> set[str]:
        entries = listing(paths)
        mask = held_out(entries, fraction, seed)
        return {path for path, is_chosen in zip(paths, mask, strict=True) if is_chosen}

    paths = [f"a/{i}" for i in range(50)]
    assert len(chosen(paths, 0.2)) == 10
    assert chosen(paths, 0.2) == chosen(paths[::-1], 0.2) != chosen(paths, 0.2, seed=1)
    assert len(chosen(paths[:2], 0.01)) == len(chosen(paths[:2], 0.99)) == 1
    assert chosen(paths[:1], 0.5) == chosen(paths, 0) == set()


# -- limit -------------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    train=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    test=st.lists(st.integers(0, 9), min_size=0, max_size=6),
    fraction=st.floats(0.01, 1),
)
def test_a_limit_is_met_exactly_and_keeps_every_class_of_every_split(
    train: list[int], test: list[int], fraction: float
) -> None:
    splits = {}
    for name, counts in (("train", train), ("validation", [1]), ("test", test[: len(train)])):
        labels = [label for label, count in enumerate(counts) for _ in range(count)]
        if labels:
            splits[name] = listing([f"{name}/{n}" for n in range(len(labels))], labels)
    source = open_source("torchvision://FakeData?size=2&image_size=3,8,8", PLAIN).with_splits(splits)
    cells = [(name, label) for name, entries in splits.items() for label in set(entries.label.tolist())]
    total = sum(map(len, splits.values()))
    limit = max(len(cells), round(fraction * total))

    limited = select(source, Options(limit=limit)).splits

    kept = Counter((name, label) for name, entries in limited.items() for label in entries.label.tolist())
    assert sum(kept.values()) == min(limit, total)
    assert set(kept) == set(cells)
    for (name, label), count in kept.items():
        whole = int((splits[name].label == label).sum())
        assert 1 <= count <= whole
        assert count <= 1 + np.ceil(limit * whole / total)


def test_a_limit_takes_a_random_part_that_hangs_on_the_seed_alone(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "images", {"a": 20, "b": 40})
    one, again, other = (
        make(folder, tmp_path / name, Options(jpeg="original", limit=30, seed=seed))
        for name, seed in (("one", 0), ("again", 0), ("other", 1))
    )
    assert one.manifest == again.manifest != other.manifest
    assert one.verified.class_samples == {
        "train": (8, 16),
        "validation": (2, 4),
    }


def test_a_limit_below_one_sample_of_each_class_gets_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = make_folder(tmp_path / "images", {"a": 5, "b": 5})
    for limit, words in (("3", "too few for one sample of each class in each split"), ("0", "must be at least 1")):
        code, _, err = run_here(monkeypatch, capfd, folder, tmp_path / "data", "--limit", limit)
        assert (code, err.count("\n")) == (2, 1), err
        assert f"--limit {limit}: {words}" in err


# -- duplicates --------------------------------------------------------------------------------------------------------


def with_duplicates(root: Path) -> Path:
    """16 pictures; a/9 is a/0 again, b/9 is validation's b/0, a/8 is b/1 under another class."""
    make_folder(root / "train", {"a": 6, "b": 6})
    make_folder(root / "validation", {"a": 2, "b": 2}, first=100)
    (root / "train" / "a" / "9.jpg").write_bytes(encoded(0))
    (root / "train" / "b" / "9.jpg").write_bytes(encoded(102))
    (root / "train" / "a" / "8.jpg").write_bytes(encoded(7))
    return root


def test_of_the_same_bytes_one_stays_and_validation_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = with_duplicates(tmp_path / "images")
    arguments = (folder, tmp_path / "data", "--deduplicate", "--jpeg", "original")

    code, out, err = run_here(monkeypatch, capfd, *arguments)

    assert code == 0, err
    assert "left out 3 files with the same bytes as another, listed in" in out
    assert "1  in train, as the same is in validation: train/b/9.jpg = validation/b/000.jpg" in out
    assert "of another class (one of the two labels is wrong): train/b/001.jpg = train/a/8.jpg" in out
    assert "more than one split" not in out
    told = json.loads(out.splitlines()[-1])
    assert (told["duplicates"], told["left_out"]) == (3, 0)
    assert {name: split["samples"] for name, split in told["splits"].items()} == {"train": 12, "validation": 4}
    rows = [json.loads(line) for line in (tmp_path / "data" / "duplicates.jsonl").read_text().splitlines()]
    assert [row["path"] for row in rows] == ["train/a/9.jpg", "train/b/001.jpg", "train/b/9.jpg"]
    assert rows[2]["same_as"] == "validation/b/000.jpg"

    code, out, err = run_here(monkeypatch, capfd, *arguments)
    assert json.loads(out.splitlines()[-1])["was_there"], err


def test_what_stays_hangs_on_no_thread_and_equals_the_set_without_duplicates(tmp_path: Path) -> None:
    folder = with_duplicates(tmp_path / "images")
    options = Options(jpeg="original", shard_samples=6, deduplicates=True)
    made = make(folder, tmp_path / "one", options)
    assert make(folder, tmp_path / "two", options).manifest == made.manifest
    found = [data for all_ in samples(made).values() for _, _, data in all_]
    assert len(found) == len(set(found)) == 16


def test_a_second_look_at_touched_files_compares_duplicates_too(tmp_path: Path) -> None:
    folder = with_duplicates(tmp_path / "images")
    options = Options(jpeg="original", deduplicates=True)
    make(folder, tmp_path / "data", options)
    (folder / "train" / "a" / "9.jpg").touch()
    assert make(folder, tmp_path / "data", options).was_there
    changed = bytearray(encoded(0))
    changed[-5] ^= 1
    (folder / "train" / "a" / "9.jpg").write_bytes(changed)
    with pytest.raises(DatasetError, match="holds another data set already"):
        make(folder, tmp_path / "data", options)


# -- order -------------------------------------------------------------------------------------------------------------


def test_without_a_shuffle_the_samples_stay_in_the_order_of_the_source(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "images", {"a": 9, "b": 8})
    made = make(
        folder, tmp_path / "data", Options(jpeg="original", shuffles=False, shard_samples=5, validation_fraction=0)
    )
    assert [data for _, _, data in samples(made)["train"]] == [encoded(n) for n in range(17)]


def test_each_sample_is_planned_once_and_shards_differ_by_at_most_one() -> None:
    entries = listing([f"a/{n}" for n in range(1003)])
    plan = plan_split("train", entries, Options(shard_mb=0.05))
    shards = list(plan.shards())
    assert sorted(entry.path for shard in shards for entry in shard.entries) == sorted(f"a/{n}" for n in range(1003))
    assert {len(shard.entries) for shard in shards} <= {1003 // len(shards), 1003 // len(shards) + 1}
    number = plan.shard_of()
    rows = {entry.path: row for row, entry in enumerate(entries)}
    assert all(number[rows[entry.path]] == shard.number for shard in shards for entry in shard.entries)


def test_a_listing_of_a_million_samples_takes_less_than_a_hundred_bytes_each() -> None:
    made = Listing()
    for n in range(100_000):
        made.add(f"n{n // 1300:08d}/n{n // 1300:08d}_{n}.JPEG", n // 1300, 110_000, "etag")
    entries = made.entries()
    columns = (entries.start, entries.length, entries.label, entries.size, entries.stamp, entries.offset)
    held = len(entries.paths) + entries.is_repeated.nbytes + sum(column.nbytes for column in columns)
    assert held / len(entries) < 100
