"""Optimisers at their edges: steps that are skipped, options that the recipe leaves out, names with dots."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from stoker.models import build_model, model_on_meta
from stoker.recipe import Optimizer
from stoker.training.optim.lamb import Lamb
from stoker.training.optim.optimizers import (
    OPTIMIZERS,
    build_optimizer,
    load_optimizer_tensors,
    optimizer_tensors,
    set_learning_rate,
)


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


def test_kernels_are_fused() -> None:
    """One launch for all tensors, and no read of the loss scale by the host."""
    for name in ("sgd", "adamw"):
        assert build_optimizer(with_gradients(1.0), Optimizer(name=name, lr=0.1)).defaults["fused"]  # type: ignore[arg-type]


def test_the_rate_is_the_recipes_before_any_schedule_sets_it() -> None:
    assert {group["lr"] for group in build_optimizer(with_gradients(1.0), Optimizer(lr=0.3)).param_groups} == {0.3}
    layered = build_optimizer(model := build_model("digitsnet", classes=3), Optimizer(lr=0.3, layer_decay=0.5))
    names = {parameter: name for name, parameter in model.named_parameters()}
    rates = {names[p]: group["lr"] for group in layered.param_groups for p in group["params"]}
    assert rates["stem.0.weight"] == rates["stem.1.bias"] == 0.3 * 0.5**6
    assert rates["head.weight"] == rates["head.bias"] == 0.3


def test_groups_without_a_scale_get_the_rate_itself() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    set_learning_rate(optimizer, 0.25)
    assert optimizer.param_groups[0]["lr"] == 0.25


def test_layers_of_equal_rates_share_a_group_for_what_is_decayed_and_one_for_the_rest() -> None:
    groups = build_optimizer(build_model("digitsnet", classes=3), Optimizer(lr=0.3)).param_groups
    assert [(group["rate_scale"], group["weight_decay"] > 0) for group in groups] == [(1.0, True), (1.0, False)]
    assert len(build_optimizer(nn.Linear(2, 3, bias=False), Optimizer(lr=0.3)).param_groups) == 1


@pytest.mark.parametrize(("decays", "decay"), [(True, 0.5), (False, 0.0)])
def test_norms_and_biases_are_decayed_where_the_recipe_says_so(decays: bool, decay: float) -> None:
    chosen = Optimizer(lr=0.1, weight_decay=0.5, decay_norm_and_bias=decays)
    groups = build_optimizer(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), chosen).param_groups
    assert {p.ndim: group["weight_decay"] for group in groups for p in group["params"]} == {2: 0.5, 1: decay}


@pytest.mark.parametrize(("decays", "decay"), [(True, 0.5), (False, 0.0)])
def test_embeddings_below_other_modules_are_known_by_the_end_of_their_names(decays: bool, decay: float) -> None:
    chosen = Optimizer(name="adamw", lr=0.1, weight_decay=0.5, decay_embeddings=decays)
    model = model_on_meta("vit_b_16", classes=3)
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = {names[p]: g["weight_decay"] for g in build_optimizer(model, chosen).param_groups for p in g["params"]}
    assert (found["encoder.pos_embedding"], found["class_token"]) == (decay, decay)
    assert found["conv_proj.weight"] == 0.5


def test_states_of_names_with_slashes_and_of_other_shapes_come_back() -> None:
    model = nn.ModuleDict({"a/b": nn.Linear(2, 2)})
    optimizer = build_optimizer(model, Optimizer(name="adamw", lr=0.1))
    state = {"a/b.weight/step": torch.tensor(3.0), "a/b.weight/exp_avg": torch.ones(2, 2, dtype=torch.float64)}
    load_optimizer_tensors(optimizer, model, state)
    restored = optimizer_tensors(optimizer, model)
    assert restored["a/b.weight/step"].shape == ()
    assert restored["a/b.weight/exp_avg"].dtype == torch.float32  # the parameter's
    with pytest.raises(KeyError, match="other"):
        load_optimizer_tensors(optimizer, model, {"other.weight/step": torch.zeros(())})


def test_lamb_returns_the_loss_of_its_closure_which_has_gradients() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = Lamb([{"params": [weight]}], lr=0.1)

    def closure() -> Tensor:
        loss = (weight**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 4.0  # type: ignore[arg-type]
    assert optimizer.step() is None
    assert weight.max() < 1


def test_lambs_defaults_are_those_of_its_paper_and_of_no_decay() -> None:
    defaults = Lamb([{"params": [nn.Parameter(torch.ones(1))]}], lr=0.1).defaults
    assert defaults == {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.0}


def test_lamb_passes_over_parameters_without_gradient_and_moves_a_layer_of_zeros_by_adams_step() -> None:
    zeros, idle, still = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, 2))
    zeros.grad, still.grad = torch.full((2, 2), 3.0), torch.zeros(2, 2)
    Lamb([{"params": [zeros, idle, still]}], lr=0.5, eps=1e-6).step()
    torch.testing.assert_close(zeros.detach(), torch.full((2, 2), -0.5))  # no length to tie it to
    torch.testing.assert_close(still.detach(), torch.ones(2, 2))  # no step to scale
    assert torch.equal(idle.detach(), torch.ones(2))


def test_lamb_ties_a_short_layers_step_to_its_length_too() -> None:
    short = nn.Parameter(torch.full((1, 1), 1e-3))
    short.grad = torch.full((1, 1), 1e-3)
    Lamb([{"params": [short]}], lr=0.5, eps=1e-6).step()  # the step's length is just below 1
    torch.testing.assert_close(short.detach(), torch.full((1, 1), 0.5e-3))
