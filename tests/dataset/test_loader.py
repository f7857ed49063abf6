"""The loader against real files: the same batches, whatever the world size, threads, faults and restarts do."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from made import write_dataset
from stoker.dataset import Batch, Loader, SampleReader
from stoker.errors import DatasetError, StorageError
from stoker.recipe import Data
from stoker.storage import Location, locate, ranges

SHARDS = [50, 7, 1, 80, 33]
SAMPLES = sum(SHARDS)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Location:
    return write_dataset(str(tmp_path_factory.mktemp("data")), {"train": SHARDS})


def loader(root: Location, *, rank: int = 0, world_size: int = 1, shuffled: bool = True, **data: object) -> Loader:
    settings = {"image_size": 16, "block_samples": 8, "window_blocks": 2, "memory_mb": 1} | data
    return Loader(
        root,
        "train",
        global_batch=24,
        micro_batch=4,
        data=Data(url=root.url, **settings),  # type: ignore[arg-type]
        seed=3,
        shuffled=shuffled,
        rank=rank,
        world_size=world_size,
    )


def batches(loader: Loader) -> dict[tuple[int, int], Batch]:
    return {(batch.step, batch.micro_batch): batch for batch in loader}


def assert_equal(left: dict[tuple[int, int], Batch], right: dict[tuple[int, int], Batch]) -> None:
    assert left.keys() == right.keys()
    for place, batch in left.items():
        assert torch.equal(batch.numbers, right[place].numbers)
        assert torch.equal(batch.images, right[place].images)
        assert torch.equal(batch.labels, right[place].labels)


def test_a_batch_is_uint8_channels_last_with_the_labels_of_its_samples(root: Location) -> None:
    batch = next(iter(loader(root)))
    assert batch.images.shape == (4, 3, 16, 16)
    assert batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(batch.labels, batch.numbers % 3)


@pytest.mark.parametrize("world_size", [2, 3, 4, 5, 6])
def test_batches_are_the_same_at_any_world_size(root: Location, world_size: int) -> None:
    shared: dict[tuple[int, int], Batch] = {}
    for rank in range(world_size):
        shared |= batches(loader(root, rank=rank, world_size=world_size))
    assert_equal(shared, batches(loader(root)))


@given(st.integers(1, 42), st.integers(1, 42), st.integers(1, 6))
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_two_resumes_at_other_world_sizes_change_nothing(
    root: Location, first: int, second: int, world_size: int
) -> None:
    """Stop after some batches, go on with the stored position on other ranks, twice: the epoch is the same."""
    whole = batches(loader(root))
    seen: dict[tuple[int, int], Batch] = {}
    state, begun = {"epoch": 0, "step": 0}, loader(root)
    for count in (first, second):
        begun = loader(root)
        begun.load_state_dict(state)
        for taken, batch in enumerate(begun, 1):
            seen[batch.step, batch.micro_batch] = batch
            if taken == count:
                break
        state = begun.state_dict()
        if state["epoch"] == 1:
            break
    seen = {place: batch for place, batch in seen.items() if state["epoch"] or place[0] < state["step"]}
    if state["epoch"] == 0:
        for rank in range(world_size):
            resumed = loader(root, rank=rank, world_size=world_size)
            resumed.load_state_dict(state)
            rest = batches(resumed)
            assert not rest.keys() & seen.keys()
            seen |= rest
    assert_equal(seen, whole)


def test_iterating_again_gives_the_next_epoch_in_another_order(root: Location) -> None:
    twice = loader(root)
    first, second = batches(twice), batches(twice)
    assert (twice.state_dict()["epoch"], twice.state_dict()["step"]) == (2, 0)
    numbers = [torch.cat([b.numbers for b in epoch.values()]).tolist() for epoch in (first, second)]
    assert numbers[0] != numbers[1]


def test_evaluation_gives_each_sample_once_over_all_ranks(root: Location) -> None:
    seen = []
    for rank in range(3):
        for batch in loader(root, rank=rank, world_size=3, shuffled=False):
            seen.extend(n for n in batch.numbers.tolist() if n >= 0)
            assert batch.size == int((batch.labels >= 0).sum())
    assert sorted(seen) == list(range(SAMPLES))


def test_padding_is_marked_and_comes_last(root: Location) -> None:
    numbers = torch.cat([batch.numbers for batch in loader(root, last_batch="pad")])
    assert (numbers[:SAMPLES] >= 0).all()
    assert (numbers[SAMPLES:] == -1).all()
    assert sorted(numbers[:SAMPLES].tolist()) == list(range(SAMPLES))


class _Faults:
    """Makes reads of shards late, short, wrong or failing, at random."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, probability: float) -> None:
        self.count, self._probability, self._random, self._lock = 0, probability, random.Random(1), threading.Lock()
        original = ranges.read_file_range

        def read_file_range(path: str, start: int, stop: int) -> bytes:
            data = bytes(original(path, start, stop))
            with self._lock:
                draw, kind = self._random.random(), self._random.randrange(3)
                time.sleep(self._random.random() * 0.002)
            if not path.endswith(".tar") or draw >= self._probability:
                return data
            self.count += 1
            if kind == 0:
                raise ConnectionResetError("reset by peer")
            if kind == 1:
                return data[: len(data) // 2]
            at = len(data) // 3
            return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]

        monkeypatch.setattr(ranges, "read_file_range", read_file_range)


def test_late_short_wrong_and_failed_reads_change_nothing(root: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = batches(loader(root))
    faults = _Faults(monkeypatch, 0.3)
    assert_equal(batches(loader(root)), whole)
    assert faults.count > 5


def test_bytes_that_stay_wrong_end_with_an_error_that_names_shard_and_key(root: Location, tmp_path: Path) -> None:
    damaged = write_dataset(str(tmp_path), {"train": SHARDS})
    shard = tmp_path / "train" / "000000.tar"
    data = bytearray(shard.read_bytes())
    data[700] ^= 1
    shard.write_bytes(data)
    with pytest.raises(StorageError, match=r"000000\.tar.*wrong checksum of sample 000000 at offset 512"):
        batches(loader(locate(damaged.url, timeout_s=0.1)))


def test_a_sample_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    damaged = write_dataset(str(tmp_path), {"train": SHARDS}, broken=5)
    with pytest.raises(DatasetError, match=r"000000\.tar, sample 000005 at offset \d+: not an image"):
        batches(loader(damaged, last_batch="pad"))


def test_a_skipped_sample_is_replaced_alike_at_any_world_size_and_counted(tmp_path: Path) -> None:
    damaged = write_dataset(str(tmp_path), {"train": SHARDS}, broken=5)
    options = {"last_batch": "pad", "on_corrupt": "skip"}
    alone = loader(damaged, **options)
    whole = batches(alone)
    assert alone.corrupt == 1
    shared: dict[tuple[int, int], Batch] = {}
    for rank in range(3):
        shared |= batches(loader(damaged, rank=rank, world_size=3, **options))
    assert_equal(shared, whole)


def test_threads_end_when_the_loop_is_left_early(root: Location) -> None:
    for _ in loader(root):
        break
    deadline = time.monotonic() + 60
    while (left := [t.name for t in threading.enumerate() if t.name.startswith("stoker-")]) and (
        time.monotonic() < deadline
    ):
        time.sleep(0.01)
    assert left == []


def test_samples_are_read_by_number_in_the_order_asked_for(root: Location) -> None:
    found = SampleReader(root, "train").read([57, 58, 0, 170])
    assert [sample.number for sample in found] == [57, 58, 0, 170]
    assert [sample.key for sample in found] == ["000057", "000058", "000000", "000170"]
    assert [sample.label for sample in found] == [0, 1, 0, 2]


def test_keys_are_known_without_reading_a_sample(root: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    read_range = Location.read_range

    def look(place: Location, *arguments: Any, **named: Any) -> Any:
        read.append(place.url)
        return read_range(place, *arguments, **named)

    monkeypatch.setattr(Location, "read_range", look)
    reader = SampleReader(root, "train")
    numbers = [57, 58, 0, 170, 49, 50, 56, 57]
    assert reader.keys(numbers) == [f"{number:06d}" for number in numbers]
    assert read
    assert all(url.endswith(".idx") for url in read)
    for number in (-1, len(reader)):
        with pytest.raises(IndexError, match="not found"):
            reader.keys([0, number])


def test_a_data_set_that_is_not_there_gets_one_line(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no data set at .*: dataset\.json not found"):
        Loader(str(tmp_path / "nothing"), "train", global_batch=4, micro_batch=4)
