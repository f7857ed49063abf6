"""The step against a loop in plain PyTorch: the same model, batches and draws give the same weights, to rounding."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest
import torch
from torch import Tensor

from plain_loop import Trained, alone, initial_model, train_by_stepper, train_on_two, train_plainly
from stoker.recipe import Recipe, parse_recipe

RECIPE = """
name: law
storage: /tmp/none
data: {url: /tmp/none, image_size: 8, last_batch: pad}
model: {name: digitsnet}
batch: {total: 12, micro: 4}
optimizer: {lr: 0.1, eps: 0.001, betas: [0.8, 0.95], weight_decay: 0.05}
schedule: {epochs: 2, warmup_epochs: 0.6666666666666666, final_lr_ratio: 0.1}
loss: {label_smoothing: 0.1, auxiliary_weight: 0.3}
ema: {decay: 0.3}
workers: {max: 2, gpus: 0, cpus: 1}
"""
CLIPPED, MIXED = "gradient_clip=0.2", "augmentation.mixup=0.8"
ADAMW, LAMB = "optimizer.name=adamw", "optimizer.name=lamb"
HALF = [
    "data.mean=[0.5019607843, 0.5019607843, 0.5019607843]",
    "data.std=[1.003921569, 1.003921569, 1.003921569]",
    "channels_last=false",
]
"""pixels become whole multiples of 1/256 and both use the same kernels, so that 16 bits round the same"""
CASES = {
    "sgd": [],
    "sgd-clipped": [CLIPPED],
    "sgd-mixup": [MIXED, "schedule.warmup_epochs=0"],
    "sgd-plain": ["optimizer.nesterov=false", "loss.label_smoothing=0", "ema=null", "optimizer.weight_decay=0"],
    "sgd-no-momentum": ["optimizer.momentum=0", "optimizer.decay_norm_and_bias=true", "channels_last=false"],
    "adamw": [ADAMW, "optimizer.lr=0.02", MIXED],
    "adamw-clipped": [ADAMW, "optimizer.lr=0.02", CLIPPED],
    "lamb": [LAMB, "optimizer.lr=0.02"],
    "lamb-clipped-mixup": [LAMB, "optimizer.lr=0.02", CLIPPED, MIXED, "optimizer.weight_decay=0"],
    "float16": ["precision=float16", *HALF, MIXED],
    "float16-clipped": ["precision=float16", *HALF, CLIPPED],
    "float16-adamw": ["precision=float16", *HALF, ADAMW, "optimizer.lr=0.02", CLIPPED],
    "float16-lamb": ["precision=float16", *HALF, LAMB, "optimizer.lr=0.02"],
    "bfloat16": ["precision=bfloat16", *HALF, CLIPPED],
}
EXACT = {"floats": "reproducible=false", "exact": "reproducible=true"}
BOTH = list(product(CASES, EXACT))
OVERFLOWING = list(product(["float16-clipped", "float16-adamw", "float16-lamb"], EXACT))


def recipe_of(case: str, exact: str) -> Recipe:
    return parse_recipe(RECIPE, "law.yaml", [*CASES[case], EXACT[exact]])


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """A model this small only waits for more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def on_two(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Trained]:
    recipes = [recipe_of(*both) for both in BOTH]
    return dict(zip(BOTH, train_on_two(recipes, tmp_path_factory.mktemp("two")), strict=True))


def assert_same_to_rounding(ours: Trained, plain: Trained, precision: str) -> None:
    """Each tensor's distance is at most a small fraction of the way that it went from where it began."""
    begin, within = initial_model().state_dict(), 1e-4 if precision == "float32" else 1e-3
    assert ours.weights.keys() == plain.weights.keys() == begin.keys()
    assert ours.average.keys() == plain.average.keys()
    for what, found, expected in (("weights", ours.weights, plain.weights), ("ema", ours.average, plain.average)):
        far = {f"{what} {name}": _distance(found[name], value, begin[name]) for name, value in expected.items()}
        assert {name: distance for name, distance in far.items() if not distance <= within} == {}
    assert ours.sums == pytest.approx(plain.sums, rel=within)
    assert ours.sums[1:] == plain.sums[1:]
    assert ours.loss_scale == plain.loss_scale


def _distance(ours: Tensor, plain: Tensor, begin: Tensor) -> float:
    ours, plain, begin = ours.double(), plain.double(), begin.double()
    way = (plain - begin).norm()
    assert way > 0
    return float((ours - plain).norm() / way)


@pytest.mark.parametrize(("case", "exact"), BOTH)
def test_one_rank_trains_as_a_plain_loop_does(case: str, exact: str) -> None:
    recipe = recipe_of(case, exact)
    with alone():
        ours = train_by_stepper(recipe)
    assert_same_to_rounding(ours, train_plainly(recipe), recipe.precision)


@pytest.mark.parametrize(("case", "exact"), BOTH)
def test_two_ranks_with_unequal_micro_batches_and_padding_train_as_a_plain_loop_does(
    on_two: dict[tuple[str, str], Trained], case: str, exact: str
) -> None:
    recipe = recipe_of(case, exact)
    assert_same_to_rounding(on_two[case, exact], train_plainly(recipe), recipe.precision)


@pytest.mark.parametrize(("case", "exact"), OVERFLOWING)
def test_steps_whose_gradients_overflow_float16_are_left_out_as_torchs_scaler_does(case: str, exact: str) -> None:
    recipe, scale = recipe_of(case, exact), 2.0**20
    with alone():
        ours = train_by_stepper(recipe, scale)
    plain = train_plainly(recipe, scale)
    assert 1.0 < plain.loss_scale < scale
    assert_same_to_rounding(ours, plain, recipe.precision)
