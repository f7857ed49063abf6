"""Optimisers at their edges: steps that are skipped, options that the recipe leaves out, names with dots."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from stoker.recipe import Optimizer
from stoker.training.optim.optimizers import OPTIMIZERS, build_optimizer, optimizer_tensors


def with_gradients(*values: float) -> nn.Module:
    model = nn.Sequential(nn.Linear(len(values), 1))
    model[0].weight.data.fill_(1.0)
    model[0].weight.grad, model[0].bias.grad = torch.tensor([values]), torch.ones(1)  # type: ignore[union-attr]
    return model


@pytest.fixture
def _memory_is_nan() -> Iterator[None]:
    """What torch allocates without a value is NaN."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]  # type: ignore[attr-defined]


@pytest.mark.usefixtures("_memory_is_nan")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_first_step_that_float16_skips_leaves_no_trace_in_the_second(name: str) -> None:
    """torch's fused SGD leaves its momenta as the memory that they were given, wherever the first step is skipped."""
    chosen, found = Optimizer(name=name, lr=0.1, weight_decay=0.0), []  # type: ignore[arg-type]
    for skips in (True, False):
        model = with_gradients(2.0, -3.0)
        optimizer, scaler = build_optimizer(model, chosen), torch.amp.GradScaler("cpu", init_scale=1.0)
        if skips:
            scaler.scale(torch.zeros(()))
            model[0].weight.grad.mul_(torch.inf)  # type: ignore[union-attr]
            scaler.step(optimizer)
            model[0].weight.grad = torch.tensor([[2.0, -3.0]])
        optimizer.found_inf = optimizer.grad_scale = None  # type: ignore[attr-defined]
        optimizer.step()
        found.append(model[0].weight.detach().clone())
    assert torch.equal(found[0], found[1])


def test_momenta_begin_at_zero_in_the_layout_of_their_weights() -> None:
    model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    state = optimizer_tensors(build_optimizer(model, Optimizer(lr=0.1)), model)
    assert {name: float(value.abs().max()) for name, value in state.items()} == {
        "weight/momentum_buffer": 0.0,
        "bias/momentum_buffer": 0.0,
    }
    assert state["weight/momentum_buffer"].stride() == model.weight.stride()
    assert optimizer_tensors(build_optimizer(model, Optimizer(lr=0.1, momentum=0.0)), model) == {}


def test_sgd_is_nesterovs_only_where_it_has_momentum_and_the_recipe_says_so() -> None:
    def is_nesterov(**chosen: object) -> bool:
        return bool(build_optimizer(with_gradients(1.0), Optimizer(lr=0.1, **chosen)).defaults["nesterov"])  # type: ignore[arg-type]

    assert is_nesterov()
    assert is_nesterov(momentum=0.5)
    assert not is_nesterov(momentum=0.0)
    assert not is_nesterov(nesterov=False)
