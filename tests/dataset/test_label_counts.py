"""Labels are counted from the indexes alone, each by one rank, and the ranks' counts add up to the split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from made import write_dataset, write_samples
from stoker.dataset import Loader
from stoker.dataset.format.manifest import read_manifest
from stoker.dataset.index_rows import IndexRows, StoredIndexes
from stoker.dataset.label_counts import label_counts
from stoker.dataset.samples import ShardReader
from stoker.errors import DatasetError
from stoker.storage import Location, Reads

LABELS = (0, 0, 1, 0, 3, 0, 0)


def loader(root: Location, rank: int = 0, world_size: int = 1) -> Loader:
    return Loader(root, "train", global_batch=6, micro_batch=2, rank=rank, world_size=world_size)


@pytest.fixture
def root(tmp_path: Path) -> Location:
    """30 samples of 4 classes in 4 shards, none of class 2."""
    return write_dataset(str(tmp_path / "data"), {"train": [9, 1, 13, 7], "other": [5]}, classes=4, labels=LABELS)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_counts_of_all_ranks_are_those_of_the_split(root: Location, world_size: int) -> None:
    by_rank = [list(loader(root, rank, world_size).label_counts()) for rank in range(world_size)]
    assert sum(len(counts) for counts in by_rank) == 4
    total = np.sum([count for counts in by_rank for count in counts], axis=0)
    assert total.tolist() == np.bincount([LABELS[n % 7] for n in range(30)], minlength=4).tolist() == [22, 4, 0, 4]


def test_no_sample_is_read_and_an_index_that_is_kept_is_read_once(
    root: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    plain = Location.read_range

    def spied(place: Location, *arguments: object, **options: object) -> memoryview:
        read.append(place.url.rpartition("/")[2])
        return plain(place, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Location, "read_range", spied)
    counted = loader(root)
    list(counted.label_counts())
    assert sorted(read) == [f"00000{n}.idx" for n in range(4)]
    list(counted)
    counted.close()
    assert sum(name.endswith(".idx") for name in read) == 4


def test_indexes_beyond_the_readers_memory_are_counted_whole_and_not_kept(tmp_path: Path) -> None:
    samples = [("bin", bytes(5), n % 3 % 2) for n in range(450)]
    root = write_samples(str(tmp_path / "data"), [samples[:205], samples[205:]])
    split = read_manifest(root).split("train")
    assert all(shard.page_bytes for shard in split.shards)
    reader, reads = ShardReader(root, split), Reads()
    reader._indexes = IndexRows(split.shards, StoredIndexes(root, split.shards, reads), 4096)
    counts = list(label_counts(reader, range(2), 3, threads=2))
    assert sum(counts).tolist() == [300, 150, 0]  # type: ignore[union-attr]
    assert reads.counters.requests == 2
    assert reader._indexes.held_bytes == 0


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_that_is_no_class_is_refused_with_its_shard(tmp_path: Path, label: int) -> None:
    samples = [("bin", bytes(5), 0), ("bin", bytes(5), label)]
    root = write_samples(str(tmp_path / "data"), [samples[:1] * 6, samples])
    with pytest.raises(DatasetError, match=f"^shard 1 of the split has a sample with label {label}, but labels are 0"):
        list(loader(root).label_counts())
