"""The step on two ranks, of which one has more micro-batches and the other at times none, against one plain loop."""

from __future__ import annotations

from itertools import product

import pytest

from plain_loop import CASES, EXACT, Trained, assert_same_to_rounding, recipe_of, train_on_two, train_plainly

BOTH = list(product(CASES, EXACT))


@pytest.fixture(scope="module")
def on_two(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Trained]:
    recipes = [recipe_of(*both) for both in BOTH]
    return dict(zip(BOTH, train_on_two(recipes, tmp_path_factory.mktemp("two")), strict=True))


@pytest.mark.parametrize(("case", "exact"), BOTH)
def test_two_ranks_with_unequal_micro_batches_and_padding_train_as_a_plain_loop_does(
    on_two: dict[tuple[str, str], Trained], case: str, exact: str
) -> None:
    recipe = recipe_of(case, exact)
    assert_same_to_rounding(on_two[case, exact], train_plainly(recipe), recipe.precision)
