"""Exact sums: no order, a bounded error, and a grid that follows what it has to hold."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from stoker.training.step.batch_norm import RunningStatistics
from stoker.training.step.exact_sums import NOT_FINITE, ZERO, ExactSums, Grid, _round_and_add, exponents_of, largest

FLOATS = st.floats(-1e4, 1e4, width=32)


def _rounded(parts: list[torch.Tensor], micro_batches: int) -> tuple[list[torch.Tensor], int]:
    """``parts`` on the grid that holds them all, and its k."""
    grid = Grid(micro_batches)
    grid.follow(exponents_of(torch.stack([largest([part])[0] for part in parts]).amax()[None]).tolist(), 0)
    rounded = [part.clone() for part in parts]
    for part in rounded:
        _round_and_add([part], [1.5 * 2.0 ** grid.k[0]], [])
    return rounded, grid.k[0]


@given(st.lists(st.lists(FLOATS, min_size=3, max_size=3), min_size=1, max_size=40), st.randoms(use_true_random=False))
def test_a_sum_is_the_same_bits_in_any_order_and_grouping(values: list[list[float]], random: object) -> None:
    parts, k = _rounded([torch.tensor(v, dtype=torch.float32) for v in values], len(values))
    straight = torch.stack(parts).double().sum(dim=0)
    order = list(range(len(parts)))
    random.shuffle(order)  # type: ignore[attr-defined]
    cut = random.randrange(len(order) + 1)  # type: ignore[attr-defined]
    ranks = []
    for members in (order[:cut], order[cut:]):
        total = torch.zeros(3)
        for member in members:
            total += parts[member]
        ranks.append(total)
    assert torch.equal((ranks[0] + ranks[1]).double(), straight)
    exact = torch.tensor(values, dtype=torch.float64).sum(dim=0)
    assert (straight - exact).abs().max() <= len(values) * 2.0 ** (k - 24)


def test_the_largest_gradient_keeps_all_bits_but_those_of_the_sum_and_the_headroom() -> None:
    grid = Grid(8)
    grid.follow([-3, 5, ZERO], 1)
    assert grid.bits_kept([-3, 5, ZERO]) == [24 - 3 - 2] * 2


def test_a_grid_that_was_outgrown_holds_the_same_gradients_the_second_time() -> None:
    grid = Grid(4)
    assert not grid.fits([0])
    grid.follow([0], 1)
    assert grid.fits([2])
    assert not grid.fits([3])
    grid.follow([3], 2)
    assert grid.fits([3])


def test_a_grid_narrows_slowly_and_widens_at_once() -> None:
    grid = Grid(4)
    grid.follow([10], 0)
    widest = grid.k[0]
    for step in range(1, 33):
        grid.follow([0], step)
    assert grid.k[0] == widest - 2
    grid.follow([20], 33)
    assert grid.k[0] == widest + 10


def test_exponents_bound_their_numbers_from_above() -> None:
    numbers = [0.75, 1.0, 1e-30, 0.0, math.inf, math.nan]
    assert exponents_of(torch.tensor(numbers)).tolist() == [0, 1, -99, ZERO, NOT_FINITE, NOT_FINITE]


def test_the_largest_sizes_of_tensors_do_not_lose_a_nan() -> None:
    found = largest([torch.tensor([-3.0, 2.0]), torch.tensor([[1.0], [math.nan]]), torch.zeros(5)])
    assert found[0] == 3
    assert found[1].isnan()
    assert found[2] == 0


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_gradient_in_pieces_is_rounded_and_added_as_a_whole_one(layout: torch.memory_format) -> None:
    whole = torch.randn(300, 400, 3, 3).to(memory_format=layout)
    gradient, total = whole.clone(), torch.randn_like(whole).round_()
    found = _round_and_add([gradient], [1.5 * 2.0**10], [total])
    assert found.item() == whole.abs().max()
    assert torch.equal(gradient, (whole + 1.5 * 2.0**10) - 1.5 * 2.0**10 + total)


def test_gradients_that_are_not_finite_leave_the_grid_and_are_not_done_again() -> None:
    sums = ExactSums([nn.Parameter(torch.zeros(2))], 4)
    assert not sums.fits([0], 1)
    before = sums.state()
    assert sums.fits([NOT_FINITE], 2)
    assert all(torch.equal(value, before[name]) for name, value in sums.state().items())


@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e12])
def test_running_statistics_have_no_order_whatever_their_size(scale: float) -> None:
    parts = [scale * (torch.randn(4, 2, 5, 5) + n) for n in range(7)]
    found = []
    for order in (range(7), [6, 2, 0, 5, 1, 4, 3]):
        model = nn.Sequential(nn.BatchNorm2d(2))
        statistics = RunningStatistics(model, exact=True)
        statistics.begin_step()
        for n in order:
            model(parts[n])
            statistics.add_micro_batch()
        statistics.end_step(7, statistics.exponents())
        found.append(model[0])
    assert torch.equal(found[0].running_mean, found[1].running_mean)
    assert torch.equal(found[0].running_var, found[1].running_var)
    assert found[0].num_batches_tracked == 1
    mean = torch.stack([part.mean(dim=(0, 2, 3)) for part in parts]).mean(dim=0)
    torch.testing.assert_close(found[0].running_mean, 0.1 * mean)
