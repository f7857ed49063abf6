"""The loader as an iterable data set: the same batches, the same position, whatever wraps it."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader

from made import write_dataset
from stoker.dataset import Batch, Loader, LoaderDataset
from stoker.recipe import Data
from stoker.storage import Location


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Location:
    return write_dataset(str(tmp_path_factory.mktemp("data")), {"train": [20, 17]})


def loader(root: Location, *, micro_batch: int = 4, shuffled: bool = True) -> Loader:
    data = Data(url=root.url, image_size=16, block_samples=4)
    return Loader(root, "train", global_batch=8, micro_batch=micro_batch, data=data, shuffled=shuffled)


def test_a_data_loader_gives_the_loaders_batches_as_pairs(root: Location) -> None:
    expected = list(loader(root))
    wrapped = DataLoader(LoaderDataset(loader(root)), batch_size=None, num_workers=0)

    found = list(wrapped)

    assert len(wrapped) == len(found) == len(expected)
    for (images, labels), batch in zip(found, expected, strict=True):
        assert torch.equal(images, batch.images)
        assert torch.equal(labels, batch.labels)


def test_whole_batches_come_when_pairs_are_not_wanted(root: Location) -> None:
    first = next(iter(LoaderDataset(loader(root), as_pairs=False)))
    assert isinstance(first, Batch)
    assert torch.equal(first.inputs, first.images)


def test_no_pair_holds_padding(root: Location) -> None:
    evaluation = loader(root, micro_batch=2, shuffled=False)
    sizes = [len(labels) for _, labels in LoaderDataset(evaluation)]  # type: ignore[misc]
    assert sizes == [2] * 18 + [1]


def test_the_position_goes_through_and_the_rest_of_the_epoch_follows(root: Location) -> None:
    whole = [labels for _, labels in LoaderDataset(loader(root))]  # type: ignore[misc]
    begun = LoaderDataset(loader(root))
    for taken, _ in enumerate(begun, 1):
        if taken == 4:
            break
    resumed = LoaderDataset(loader(root))

    resumed.load_state_dict(begun.state_dict())

    assert (begun.state_dict()["epoch"], begun.state_dict()["step"]) == (0, 2)
    assert torch.equal(torch.cat([labels for _, labels in resumed]), torch.cat(whole[4:]))  # type: ignore[misc]


def test_torchdatas_stateful_data_loader_resumes_by_the_loaders_position(root: Location) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader
    whole = [labels for _, labels in LoaderDataset(loader(root))]  # type: ignore[misc]
    begun = stateful(LoaderDataset(loader(root)), batch_size=None, num_workers=0)
    batches = iter(begun)
    for _ in range(4):
        next(batches)
    resumed = stateful(LoaderDataset(loader(root)), batch_size=None, num_workers=0)

    resumed.load_state_dict(begun.state_dict())

    assert torch.equal(torch.cat([labels for _, labels in resumed]), torch.cat(whole[4:]))


def test_worker_processes_are_refused_in_words(root: Location) -> None:
    wrapped = DataLoader(LoaderDataset(loader(root)), batch_size=None, num_workers=1)
    with pytest.raises(ValueError, match=r"num_workers=1; set num_workers=0 and batch_size=None"):
        next(iter(wrapped))
