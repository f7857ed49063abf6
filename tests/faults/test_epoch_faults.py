"""An epoch through a proxy with faults is exact or ends with one clear error; no sample is ever wrong or missing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from conftest import Store
from faults.proxy import Fault, FaultProxy
from made import write_dataset
from stoker.dataset import Loader
from stoker.errors import StorageError
from stoker.recipe import Data
from stoker.storage import locate

pytestmark = pytest.mark.store

SHARDS = [50, 7, 1, 80, 33]
SAMPLES = sum(SHARDS)


@pytest.fixture(scope="module")
def url(store: Store) -> str:
    return write_dataset(store.fresh("epoch"), {"train": SHARDS}).url


def loader(url: str, *, rank: int = 0, world_size: int = 1, **data: object) -> Loader:
    settings = {"image_size": 16, "block_samples": 8, "last_batch": "pad", "read_deadline_s": 1.0} | data
    return Loader(
        url,
        "train",
        global_batch=24,
        micro_batch=4,
        data=Data(url=url, **settings),  # type: ignore[arg-type]
        rank=rank,
        world_size=world_size,
    )


Epoch = dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]]
"""(numbers, images) by step and micro-batch"""


def epoch(*loaders: Loader) -> Epoch:
    return {(b.step, b.micro_batch): (b.numbers, b.images) for loader in loaders for b in loader}


@pytest.fixture(scope="module")
def undisturbed(url: str) -> Epoch:
    whole = epoch(loader(url))
    numbers = torch.cat([numbers for numbers, _ in whole.values()])
    assert sorted(numbers[numbers >= 0].tolist()) == list(range(SAMPLES))
    return whole


def assert_equal(
    seen: Epoch,
    whole: Epoch,
) -> None:
    assert seen.keys() == whole.keys()
    for place, (numbers, images) in seen.items():
        assert torch.equal(numbers, whole[place][0])
        assert torch.equal(images, whole[place][1])


@pytest.mark.parametrize("kind", ["error", "slow_down", "refuse", "reset", "cut", "short", "stall", "flip"])
@pytest.mark.usefixtures("client")
def test_an_epoch_under_one_kind_of_fault_is_exact(kind: str, url: str, proxy: FaultProxy, undisturbed: Epoch) -> None:
    fault = Fault(kind, times=4 if kind == "stall" else None, probability=0.2, path="/train/", seconds=5)
    with proxy.faults(fault):
        disturbed = loader(url)
        assert_equal(epoch(disturbed), undisturbed)
        assert proxy.done[kind] > 0
    metrics = disturbed.metrics()
    assert metrics["read_retries"] > 0 or kind == "refuse"  # aiohttp sends once more by itself


def test_an_epoch_under_all_faults_at_once_is_exact_on_three_ranks(
    url: str, proxy: FaultProxy, undisturbed: Epoch
) -> None:
    kinds = ("error", "slow_down", "refuse", "reset", "cut", "short", "flip")
    with proxy.faults(*(Fault(kind, probability=0.05, path="/train/") for kind in kinds)):
        ranks = [loader(url, rank=rank, world_size=3, hedge_percentile=90) for rank in range(3)]
        assert_equal(epoch(*ranks), undisturbed)
        assert sum(proxy.done.values()) > 5


@pytest.mark.usefixtures("client")
@pytest.mark.parametrize("kind", ["slow_down", "flip", "cut"])
def test_a_fault_that_stays_ends_the_epoch_with_one_line_that_names_the_object(
    kind: str, url: str, proxy: FaultProxy
) -> None:
    given: list[int] = []

    def consume(impatient: Loader) -> None:
        for batch in impatient:
            given.extend(batch.numbers.tolist())

    with proxy.faults(Fault(kind, path="/train/000003.tar")):
        impatient = Loader(
            locate(url, timeout_s=1.0),
            "train",
            global_batch=24,
            micro_batch=4,
            data=Data(url=url, image_size=16, block_samples=8),
        )
        with pytest.raises(StorageError, match=r"cannot read s3://.*/train/000003\.tar") as raised:
            consume(impatient)
    assert "\n" not in str(raised.value)
    assert len(set(given)) == len(given)


def test_the_second_epoch_of_a_data_set_that_fits_the_cache_reads_nothing(url: str, tmp_path: Path) -> None:
    cached = loader(url, cache_dir=str(tmp_path), cache_mb=100)
    first = epoch(cached)
    before = cached.metrics()["read_requests"]
    assert before > 0

    second = epoch(cached)
    again = loader(url, cache_dir=str(tmp_path), cache_mb=100)
    repeated = epoch(again)

    assert cached.metrics()["read_requests"] == before
    assert again.metrics()["read_requests"] == 0
    assert_equal(repeated, first)
    assert second.keys() == first.keys()


def test_a_cache_that_is_deleted_and_damaged_under_way_changes_no_sample(
    url: str, tmp_path: Path, undisturbed: Epoch
) -> None:
    epoch(loader(url, cache_dir=str(tmp_path), cache_mb=100))
    blocks = [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size > 1000]
    for n, path in enumerate(sorted(blocks)):
        if n % 3 == 0:
            path.unlink()
        elif n % 3 == 1:
            with open(path, "r+b") as file:
                file.seek(path.stat().st_size // 2)
                file.write(os.urandom(64))

    repaired = loader(url, cache_dir=str(tmp_path), cache_mb=100)

    assert_equal(epoch(repaired), undisturbed)
    assert repaired.metrics()["cache_damaged"] > 0
    assert repaired.metrics()["cache_hits"] > 0


def test_a_cache_too_small_for_the_data_set_changes_no_sample(url: str, tmp_path: Path, undisturbed: Epoch) -> None:
    with_cache = loader(url, cache_dir=str(tmp_path), cache_mb=1, block_samples=8)
    assert_equal(epoch(with_cache), undisturbed)
