"""The moving average of the weights: how far it moves in a step, what it averages, and that it is nobody's alias."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stoker.training.optim.ema import MovingAverage


def model_of(value: float, batches: int = 0) -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    for tensor in model.state_dict().values():
        tensor.fill_(value if tensor.is_floating_point() else batches)
    return model


@pytest.mark.parametrize(("step", "decay"), [(0, 0.1), (1, 2 / 11), (2, 0.25), (10, 0.5), (10**6, 0.5)])
def test_a_step_keeps_the_decay_and_early_ones_keep_less(step: int, decay: float) -> None:
    average = MovingAverage(model_of(1.0), 0.5)
    average.update(model_of(3.0), step)
    for value in average.model.state_dict().values():
        if value.is_floating_point():
            torch.testing.assert_close(value, torch.full_like(value, decay * 1.0 + (1 - decay) * 3.0))


def test_counts_are_copied_and_not_averaged() -> None:
    average = MovingAverage(model_of(1.0, batches=3), 0.9)
    average.update(model_of(1.0, batches=8), 4)
    assert int(average.model[1].num_batches_tracked) == 8


def test_a_model_without_counts_is_averaged_too() -> None:
    model = nn.Linear(2, 2)
    average = MovingAverage(model, 0.9)
    with torch.no_grad():
        model.weight.add_(1.0)
    average.update(model, 0)
    torch.testing.assert_close(average.model.weight, model.weight - 0.1)


def test_the_average_is_a_copy_that_evaluates_and_is_not_trained() -> None:
    model = model_of(1.0)
    average = MovingAverage(model, 0.9)
    assert not average.model.training
    assert not any(parameter.requires_grad for parameter in average.model.parameters())
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    ours = {tensor.data_ptr() for tensor in average.model.state_dict().values()}
    assert not ours & {tensor.data_ptr() for tensor in model.state_dict().values()}
