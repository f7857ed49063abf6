"""The verification of a data set: what it finds, and that its memory does not grow with the data set."""

from __future__ import annotations

import errno
import itertools
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from images import make, make_folder
from stoker.dataset.format.index import ShardIndex
from stoker.dataset.format.manifest import Manifest, Shard, Split, write_manifest
from stoker.dataset.prepare import shared
from stoker.dataset.prepare import verify as module
from stoker.dataset.prepare.shared import SharedImages
from stoker.dataset.prepare.verify import verify
from stoker.errors import DatasetError, StorageError
from stoker.storage import Location, locate

CLASSES, SAMPLES = 10, 20_000


class Simulated:
    """Indexes that are made when they are read, as from a store, of shards that hold nothing.

    Sample i of a split of ``shards`` shards is the image i, and of validation the image ``far`` + i.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, root: Location, shards: dict[str, int], far: int) -> None:
        self.far = far
        splits = {
            name: Split(SAMPLES * count, tuple(self.shard(name, number) for number in range(count)))
            for name, count in shards.items()
        }
        write_manifest(root, Manifest(tuple(str(n) for n in range(CLASSES)), splits))
        monkeypatch.setattr(module, "read_index", self.read_index)
        monkeypatch.setattr(module, "verify_pages", lambda *_: None)
        monkeypatch.setattr(Location, "size", lambda _: 1)

    def shard(self, split: str, number: int) -> Shard:
        name = f"{split}/{number:06d}"
        return Shard(f"{name}.tar", 1, SAMPLES, "xxh3_128:0", f"{name}.idx", 60 * SAMPLES, "xxh3_128:0")

    def read_index(self, root: Location, shard: Shard) -> ShardIndex:
        split, _, name = shard.path.partition("/")
        images = np.arange(SAMPLES, dtype=np.uint64) + np.uint64(int(name[:6]) * SAMPLES)
        images += np.uint64(self.far if split == "validation" else 0)
        empty = np.zeros(SAMPLES, np.int64)
        return ShardIndex(
            offset=empty,
            length=empty.copy(),
            label=(images % np.uint64(CLASSES)).astype(np.int64),
            width=np.zeros(SAMPLES, np.int32),
            height=np.zeros(SAMPLES, np.int32),
            checksum=images * np.uint64(0x9E3779B97F4A7C15),  # odd: different images differ, spread over 64 bits
            key_bytes=np.zeros(10 * SAMPLES, np.uint8),
            key_ends=empty.copy(),
        )


def peak_of(shards: dict[str, int], folder: Path, monkeypatch: pytest.MonkeyPatch, far: int) -> tuple[int, int]:
    root = locate(folder)
    Simulated(monkeypatch, root, shards, far)
    tracemalloc.start()
    try:
        found = verify(root)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.class_samples == {name: (SAMPLES * n // CLASSES,) * CLASSES for name, n in shards.items()}
    return peak, found.shared_images


def test_the_memory_of_a_verification_does_not_grow_with_the_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two million samples, then four, whose indexes are 0.3 GB."""
    far = 50 * SAMPLES - 7
    one, shared_one = peak_of({"train": 50, "validation": 50}, tmp_path / "one", monkeypatch, far)
    two, shared_two = peak_of({"train": 150, "validation": 50}, tmp_path / "two", monkeypatch, far)
    assert (shared_one, shared_two) == (7, 50 * SAMPLES)
    assert two < 1.2 * one
    assert two < 120 * 2**20


def test_indexes_are_read_in_advance_by_their_number_and_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pool:
        """Counts what was begun and not yet used."""

        begun = 0

        def submit(self, check, shard):  # type: ignore[no-untyped-def]
            self.begun += 1

            class Done:
                def result(self) -> Shard:
                    return check(shard)  # type: ignore[no-any-return]

            return Done()

    def most(sizes: list[int], readers: int) -> int:
        pool, held, shards = Pool(), [], [Shard(str(n), 1, 1, "", "", size, "") for n, size in enumerate(sizes)]
        for used, shard in enumerate(module._in_turn(pool, readers, lambda shard: shard, shards)):  # type: ignore[arg-type, return-value]
            assert shard is shards[used]
            held.append(pool.begun - used)
        assert len(held) == len(sizes)
        assert len(set(held[: len(held) - max(held)])) <= 1, "as many are read in advance all along"
        return max(held)

    monkeypatch.setattr(module, "_INDEX_BYTES", 100)
    assert most([1] * 50, 16) == 16
    assert most([1] * 50, 2) == 2
    assert most([30] * 50, 16) == 3
    assert most([50] * 50, 16) == 2
    assert most([51] * 50, 16) == 1
    assert most([1000] * 5, 16) == 1


@given(
    st.lists(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 20), max_size=60), min_size=1, max_size=4),
    st.integers(1, 20),
)
def test_images_that_two_splits_have_are_counted_once_for_each_pair(splits: list[list[int]], run: int) -> None:
    names = [str(n) for n in range(len(splits))]
    with SharedImages(names, run=run) as images:
        for name, split in zip(names, splits, strict=True):
            for first in range(0, len(split), 7):
                images.add(name, np.array(split[first : first + 7], np.uint64))
        found = images.count()
    assert found == sum(len(set(a) & set(b)) for a, b in itertools.combinations(splits, 2))


def test_a_full_disk_of_temporary_files_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def __init__(self, _: int) -> None: ...

        def seek(self, _: int) -> None: ...

        def write(self, _: bytes) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self) -> None: ...

    monkeypatch.setattr(shared.tempfile, "SpooledTemporaryFile", Full)
    with SharedImages(["train", "test"], run=2) as images:
        images.add("train", np.arange(1, dtype=np.uint64))
        with pytest.raises(StorageError, match=r"No space left on device\); set TMPDIR to a folder with 8 bytes"):
            images.add("train", np.arange(1, dtype=np.uint64))
        images.add("test", np.arange(1, dtype=np.uint64))
        with pytest.raises(StorageError, match="set TMPDIR"):
            images.count()


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_that_no_class_has_is_found_in_any_shard(
    label: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(make_folder(tmp_path / "images", {"cat": 9, "dog": 9}), tmp_path / "data")
    last, read = made.manifest.split("train").shards[-1], module.read_index

    def changed(root: Location, shard: Shard) -> ShardIndex:
        index = read(root, shard)
        if shard == last:
            index = replace(index, label=np.append(index.label[:-1], label))
        return index

    monkeypatch.setattr(module, "read_index", changed)
    with pytest.raises(DatasetError, match="the indexes of split 'train' do not fit the manifest"):
        verify(made.root)


def test_samples_that_the_manifest_does_not_count_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make(make_folder(tmp_path / "images", {"cat": 9, "dog": 9}), tmp_path / "data")
    splits = dict(made.manifest.splits)
    splits["train"] = replace(splits["train"], samples=splits["train"].samples + 1)
    monkeypatch.setattr(module, "read_manifest", lambda _: replace(made.manifest, splits=splits))
    with pytest.raises(DatasetError, match="the indexes of split 'train' do not fit the manifest"):
        verify(made.root)
