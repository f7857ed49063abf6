"""Optimisers: the rates and decay of each parameter, LAMB by its paper, and states that come back by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from stoker.models import build_model, freeze, head_names, layers_of, model_on_meta
from stoker.recipe import Optimizer
from stoker.recipe.model_fields import OPTIMIZER_NAMES
from stoker.training.optim.lamb import Lamb
from stoker.training.optim.optimizers import (
    OPTIMIZERS,
    build_optimizer,
    load_optimizer_tensors,
    optimizer_tensors,
    set_learning_rate,
)


def _rates(model: nn.Module, chosen: Optimizer) -> dict[str, tuple[float, float]]:
    """(rate, weight decay) by parameter."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(model, chosen)
    set_learning_rate(optimizer, 1.0)
    return {names[p]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}


def test_lamb_does_what_its_paper_says() -> None:
    torch.manual_seed(0)
    matrix, bias = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(3))
    groups = [{"params": [matrix], "weight_decay": 0.1}, {"params": [bias], "weight_decay": 0.0}]
    optimizer = Lamb(groups, lr=0.5, betas=(0.9, 0.99), eps=1e-6)
    expected = {p: p.detach().double().clone() for p in (matrix, bias)}
    mean, square = ({p: torch.zeros_like(v) for p, v in expected.items()} for _ in range(2))
    for t in range(1, 4):
        for p, decay in ((matrix, 0.1), (bias, 0.0)):
            p.grad = torch.randn_like(p)
            g = p.grad.double()
            mean[p] = 0.9 * mean[p] + 0.1 * g
            square[p] = 0.99 * square[p] + 0.01 * g * g
            move = mean[p] / (1 - 0.9**t) / ((square[p] / (1 - 0.99**t)).sqrt() + 1e-6) + decay * expected[p]
            ratio = expected[p].norm() / move.norm() if decay else 1.0
            expected[p] = expected[p] - 0.5 * ratio * move
        optimizer.step()
        for p, value in expected.items():
            torch.testing.assert_close(p.detach().double(), value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_lamb_adapts_layers_and_not_norms_whether_they_are_decayed_or_not(decay: float) -> None:
    torch.manual_seed(0)
    matrix, norm = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(3))
    before = {p: p.detach().clone() for p in (matrix, norm)}
    for p in before:
        p.grad = torch.randn_like(p)
    Lamb([{"params": [matrix, norm], "weight_decay": decay}], lr=0.5, eps=0.0).step()
    moved = {p: (p.detach() - value).norm() for p, value in before.items()}
    torch.testing.assert_close(moved[matrix], 0.5 * before[matrix].norm())  # as far as the rate says, of its own length
    assert norm.grad is not None
    torch.testing.assert_close(norm.detach(), before[norm] - 0.5 * (norm.grad.sign() + decay * before[norm]))


def test_lamb_leaves_weights_of_zero_able_to_move() -> None:
    zero = nn.Parameter(torch.zeros(2, 2))
    zero.grad = torch.ones(2, 2)
    Lamb([{"params": [zero]}], lr=0.1, weight_decay=0.1).step()
    assert torch.all(zero < 0)


def test_a_recipe_may_name_each_optimizer_of_the_table() -> None:
    assert tuple(OPTIMIZERS) == OPTIMIZER_NAMES


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_trains_and_its_state_is_restored_exactly(name: str) -> None:
    chosen = Optimizer(name=name, lr=0.01)  # type: ignore[arg-type]
    torch.manual_seed(0)
    models = [build_model("digitsnet", classes=3) for _ in range(2)]
    first, second = (build_optimizer(model, chosen) for model in models)
    assert type(first).__name__.lower() == name
    initial = [p.detach().clone() for p in models[0].parameters()]
    gradients = [torch.randn_like(p) for p in models[0].parameters()]
    for step in range(3):
        for parameter, gradient in zip(models[0].parameters(), gradients, strict=True):
            parameter.grad = gradient.clone()
        if step == 2:
            models[1].load_state_dict(models[0].state_dict())
            state = optimizer_tensors(first, models[0])
            load_optimizer_tensors(second, models[1], state)
            restored = optimizer_tensors(second, models[1])
            assert restored.keys() == state.keys() != set()
            assert all(torch.equal(restored[key], value) for key, value in state.items())
            for parameter, gradient in zip(models[1].parameters(), gradients, strict=True):
                parameter.grad = gradient.clone()
            second.step()
        first.step()
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))
    for before, after, gradient in zip(initial, models[0].parameters(), gradients, strict=True):
        assert ((after - before) * gradient).sum() < 0  # downhill


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_is_in_the_docs(name: str) -> None:
    pages = [page.read_text() for page in (Path(__file__).parents[3] / "docs").rglob("*.md")]
    assert any(f"`{name}`" in page for page in pages)


def test_norms_biases_and_if_chosen_embeddings_are_not_decayed() -> None:
    model = model_on_meta("vit_b_16", classes=5)
    by_default = _rates(model, Optimizer(name="adamw", lr=1, weight_decay=0.3))
    without = _rates(model, Optimizer(name="adamw", lr=1, weight_decay=0.3, decay_embeddings=False))
    assert by_default["encoder.pos_embedding"] == by_default["conv_proj.weight"] == (1.0, 0.3)
    assert by_default["encoder.ln.weight"] == by_default["heads.head.bias"] == (1.0, 0.0)
    changed = {name for name in by_default if by_default[name] != without[name]}
    assert changed == {"class_token", "encoder.pos_embedding"}


@pytest.mark.parametrize(
    ("name", "layers", "first", "last"),
    [
        ("vit_b_16", 14, "conv_proj.weight", "heads.head.weight"),
        ("resnet50", 18, "conv1.weight", "fc.weight"),
        ("convnext_tiny", 23, "features.0.0.weight", "classifier.2.weight"),
    ],
)
def test_rates_fall_layer_by_layer_from_the_head_to_the_image(name: str, layers: int, first: str, last: str) -> None:
    model = model_on_meta(name, classes=5)
    rates = _rates(model, Optimizer(name="adamw", lr=1, layer_decay=0.5))
    assert len(layers_of(model)) == layers
    assert len(rates) == len(list(model.parameters()))
    assert (rates[last][0], rates[first][0]) == (1.0, 0.5 ** (layers - 1))
    assert len({rate for rate, _ in rates.values()}) == layers


def test_frozen_parameters_are_not_given_to_the_optimizer() -> None:
    model, other = (model_on_meta("resnet18", classes=classes) for classes in (5, 6))
    freeze(model, "backbone", lambda: head_names(model, other))
    assert set(_rates(model, Optimizer(lr=1))) == {"fc.weight", "fc.bias"}
