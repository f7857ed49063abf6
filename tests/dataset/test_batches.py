"""Batches against the order that names their samples, and the limit of corrupt ones to the sample."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from made import write_dataset
from stoker.dataset import Batch, Loader
from stoker.dataset.decode import EvaluationImages
from stoker.dataset.samples import Sample
from stoker.dataset.undecodable import UndecodableImage, UndecodableSample
from stoker.errors import DatasetError
from stoker.recipe import Data
from stoker.storage import Location

SHARDS = [50, 7, 1, 80, 33]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Location:
    return write_dataset(str(tmp_path_factory.mktemp("data")), {"train": SHARDS})


@pytest.mark.parametrize("last_batch", ["drop", "pad"])
@pytest.mark.parametrize(("block", "window"), [(8, 2), (3, 5), (16, 1), (1, 1), (200, 2)])
def test_each_batch_holds_the_samples_of_its_place_in_the_order(
    root: Location, last_batch: str, block: int, window: int
) -> None:
    data = Data(
        url=root.url,
        image_size=16,
        block_samples=block,
        window_blocks=window,
        last_batch=last_batch,  # type: ignore[arg-type]
        memory_mb=1,
    )
    loader, places = Loader(root, "train", global_batch=24, micro_batch=4, data=data, seed=3), 0
    for epoch in range(2):
        order = loader.order(epoch)
        for batch in loader:
            slots = range(4 * batch.micro_batch, 4 * batch.micro_batch + 4)
            assert batch.numbers.tolist() == order.samples_at(batch.step, slots).tolist()
            places += 1
    assert places == 2 * 6 * loader.steps
    loader.close()


class Failing(EvaluationImages):
    """Cannot decode the samples with these numbers."""

    def __init__(self, numbers: set[int]) -> None:
        super().__init__(16, 16)
        self._numbers = numbers

    def decode(
        self, samples: Sequence[Sample], draws: NDArray[np.float64], out: Tensor
    ) -> dict[int, UndecodableSample]:
        failed = {i: UndecodableImage("broken") for i, s in enumerate(samples) if s.number in self._numbers}
        return super().decode(samples, draws, out) | failed


@pytest.mark.parametrize("corrupt", [1, 2, 3, 4])
def test_as_many_corrupt_samples_as_the_limit_are_replaced_and_one_more_ends_it(root: Location, corrupt: int) -> None:
    data = Data(url=root.url, image_size=16, on_corrupt="skip", corrupt_limit=3, block_samples=8, last_batch="pad")
    decoder = Failing({10, 11, 60, 61}.intersection(sorted({10, 11, 60, 61})[:corrupt]))
    loader = Loader(root, "train", global_batch=24, micro_batch=4, data=data, decoder=decoder, epochs=1)
    if corrupt <= 3:
        assert sum(batch.size for batch in loader) == sum(SHARDS)
        assert loader.corrupt == corrupt
        return
    with pytest.raises(DatasetError, match=r"corrupt sample 4, above data\.corrupt_limit \(3\)"):
        list(loader)


def test_a_corrupt_sample_is_replaced_by_the_next_that_can_be_decoded_in_its_block(root: Location) -> None:
    data = Data(url=root.url, image_size=16, on_corrupt="skip", block_samples=8, last_batch="pad")
    # one slot takes whole blocks; several may share one
    loader = Loader(root, "train", global_batch=1, micro_batch=1, data=data, decoder=Failing({12, 13, 15}), epochs=1)
    labels = {int(n): int(label) for batch in loader for n, label in zip(batch.numbers, batch.labels, strict=True)}
    assert (labels[12], labels[13], labels[15]) == (14 % 3, 14 % 3, 8 % 3)  # the block is 8 to 15


def test_an_evaluation_counts_no_sample_twice_where_another_is_corrupt(root: Location) -> None:
    data = Data(url=root.url, image_size=16, on_corrupt="skip", corrupt_limit=3, block_samples=8)

    def batches(corrupt: set[int]) -> tuple[Loader, list[Batch]]:
        decoder = Failing(corrupt)
        loader = Loader(root, "train", global_batch=24, micro_batch=4, data=data, shuffled=False, decoder=decoder)
        return loader, list(loader)

    loader, found = batches({12, 13, 15})
    numbers = [int(n) for batch in found for n in batch.numbers if n >= 0]
    assert sorted(numbers) == [n for n in range(sum(SHARDS)) if n not in {12, 13, 15}]
    assert loader.corrupt == 3
    for batch, whole in zip(found, batches(set())[1], strict=True):
        is_out = torch.isin(whole.numbers, torch.tensor([12, 13, 15, -1]))
        assert torch.equal(batch.numbers, whole.numbers.masked_fill(is_out, -1))
        assert torch.equal(batch.labels, whole.labels.masked_fill(is_out, -1))
        assert torch.equal(batch.images, whole.images * ~is_out[:, None, None, None])
    with pytest.raises(DatasetError, match="corrupt sample 4, above"):
        batches({12, 13, 14, 15})
