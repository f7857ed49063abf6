"""Micro-batches on their way to the device."""

import torch
from torch import nn

from stoker.dataset import Batch
from stoker.training.step.prefetch import on_device


def batch_of(size: int, padding: int) -> Batch:
    numbers = torch.tensor([*range(size), *[-1] * padding])
    images = torch.zeros(size + padding, 3, 1, 1, dtype=torch.uint8)
    return Batch(images, numbers.clone(), numbers, 0, 0, 0)


def test_padding_is_cut_off() -> None:
    (there,) = on_device([batch_of(3, 2)], torch.device("cpu"))
    assert (there.size, len(there.images), there.labels.tolist()) == (3, 3, [0, 1, 2])


def test_a_micro_batch_of_padding_alone_goes_through_batch_norm() -> None:
    (there,) = on_device([batch_of(0, 4)], torch.device("cpu"))
    assert there.size == 0
    nn.BatchNorm2d(3)(there.images.float())  # one value a channel would raise
