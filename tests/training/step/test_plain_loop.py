"""The step against a loop in plain PyTorch: the same model, batches and draws give the same weights, to rounding."""

from __future__ import annotations

from itertools import product

import pytest

from plain_loop import CASES, EXACT, alone, assert_same_to_rounding, recipe_of, train_by_stepper, train_plainly

OVERFLOWING = list(product(["float16-clipped", "float16-adamw", "float16-lamb"], EXACT))


@pytest.mark.parametrize(("case", "exact"), list(product(CASES, EXACT)))
def test_one_rank_trains_as_a_plain_loop_does(case: str, exact: str) -> None:
    recipe = recipe_of(case, exact)
    with alone():
        ours = train_by_stepper(recipe)
    assert_same_to_rounding(ours, train_plainly(recipe), recipe.precision)


@pytest.mark.parametrize(("case", "exact"), OVERFLOWING)
def test_steps_whose_gradients_overflow_float16_are_left_out_as_torchs_scaler_does(case: str, exact: str) -> None:
    recipe, scale = recipe_of(case, exact), 2.0**20
    with alone():
        ours = train_by_stepper(recipe, scale)
    plain = train_plainly(recipe, scale)
    assert 1.0 < plain.loss_scale < scale
    assert_same_to_rounding(ours, plain, recipe.precision)
