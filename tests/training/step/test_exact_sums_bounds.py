"""Exact sums at their bounds: when a grid fits, what a scaled loss is rounded to, and what a GPU's calls compute."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from plain_loop import alone, initial_model, recipe_of, step_batches
from stoker.training.step import exact_sums
from stoker.training.step.exact_sums import (
    NOT_FINITE,
    ZERO,
    Exactness,
    ExactSums,
    Grid,
    _round_and_add,
    exponents_of,
    largest,
)
from stoker.training.step.stepper import Stepper


class _AsOnGpu(torch.Tensor):
    """A tensor of this machine that says it is on a GPU, so that the calls that a GPU gets are made here."""

    is_cuda = True  # type: ignore[assignment]


# -- grids -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("micro_batches", "bits"), [(1, 1), (2, 1), (4, 1), (5, 2), (8, 2), (9, 3), (1024, 9)])
def test_a_grid_holds_the_sum_of_all_micro_batches_and_is_no_coarser(micro_batches: int, bits: int) -> None:
    """2^(k + 1) bounds the sum of ``micro_batches`` numbers below 2^e, and 1.5 * 2^k each of them."""
    assert Grid(micro_batches).required(7) == 7 + bits
    assert micro_batches * 2.0**7 <= 2.0 ** (7 + bits + 1)


def test_a_grid_is_never_finer_than_float32_bears() -> None:
    grid = Grid(4)
    assert [grid.required(e) for e in (ZERO, -92, -91, -90, -89)] == [-90, -90, -90, -89, -88]
    grid.follow([ZERO], 1)
    assert grid.k == [-88]


def test_a_grid_fits_where_it_holds_every_tensor() -> None:
    grid = Grid(4)
    assert not grid.fits([0, 0])
    grid.follow([0, 5], 1)
    assert grid.k == [3, 8]
    assert grid.fits([2, 7])
    assert not grid.fits([3, 0])
    assert not grid.fits([0, 8])
    assert not grid.fits([0, NOT_FINITE])


def test_a_grid_narrows_by_a_bit_in_every_sixteenth_step_and_no_other() -> None:
    grid = Grid(4)
    grid.follow([10], 1)
    found = []
    for step in range(2, 34):
        grid.follow([0], step)
        found.append(grid.k[0])
    assert found == [13] * 14 + [12] * 16 + [11] * 2


def test_bits_are_counted_from_a_tensors_largest_gradient_to_its_grid() -> None:
    grid = Grid(4)
    grid.follow([0, ZERO, 5], 1)
    assert grid.bits_kept([-3, ZERO, 5]) == [-3 - 3 + 23, 5 - 8 + 23]


# -- sums --------------------------------------------------------------------------------------------------------------


def absorbed(sums: ExactSums, parameters: list[nn.Parameter], gradients: list[Tensor], scale: int) -> list[Tensor]:
    sums.begin(scale)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        assert parameter.grad is None
        parameter.grad = gradient * 2.0**scale
    sums.absorb()
    return [each * 2.0**-scale for each in sums._sums]


def test_a_scaled_loss_is_rounded_and_its_grid_followed_as_the_loss_itself() -> None:
    parameters = [nn.Parameter(torch.zeros(50)), nn.Parameter(torch.zeros(2))]
    gradients = [torch.randn(50, generator=torch.Generator().manual_seed(0)), torch.tensor([2.0**-9, 0.0])]
    found, states = [], []
    for scale in (0, 12):
        sums = ExactSums(parameters, 4)
        absorbed(sums, parameters, gradients, scale)
        assert not sums.fits(sums.exponents().tolist(), 1)
        found.append(absorbed(sums, parameters, gradients, scale))
        assert sums.fits(sums.exponents().tolist(), 2)
        states.append(sums.state())
    grid = torch.exp2(states[0]["grid"].double() - 23)
    for rounded, other, gradient, unit in zip(*found, gradients, grid, strict=True):
        assert torch.equal(rounded, other)
        assert torch.equal(rounded.double(), (gradient.double() / unit).round() * unit)
    assert states[0].keys() == states[1].keys() == {"redone", "grid", "bits"}
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_a_step_without_a_scale_is_one_of_a_scale_of_one() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    sums = ExactSums([parameter], 4)
    sums.begin()
    parameter.grad = torch.ones(1)
    sums.absorb()
    sums.fits(sums.exponents().tolist(), 1)
    assert sums.state()["grid"].tolist() == [1 + 1 + 2]  # 1 is below 2^1; a bit for the sum, two of headroom


def test_a_large_step_leaves_no_maximum_to_the_next() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    sums = ExactSums([parameter], 4)
    for size, exponent in ((100.0, 7), (1.0, 1)):
        sums.begin()
        parameter.grad = torch.full((1,), size)
        sums.absorb()
        assert sums.exponents().tolist() == [exponent]


def test_exactness_tells_the_fewest_bits_their_median_and_the_steps_done_again() -> None:
    sums = ExactSums([nn.Parameter(torch.zeros(1)) for _ in range(4)], 4)
    assert sums.exactness == Exactness(0, 0, 0)
    assert not sums.fits([0, 0, 0, 0], 1)
    assert sums.exactness == Exactness(0, 0, 1)
    assert sums.fits([0, -9, -4, -2], 2)
    assert sums.exactness == Exactness(23 - 3 - 9, 23 - 3 - 4, 1)


def test_a_state_comes_back_whole_also_one_from_before_the_first_step() -> None:
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    sums, other = ExactSums(parameters, 4), ExactSums(parameters, 4)
    other.load_state(sums.state())
    assert other.state().keys() == sums.state().keys() == {"redone"}
    sums.fits([0, 3], 1)
    sums.fits([0, 3], 2)
    other.load_state(sums.state())
    assert all(value.dtype == torch.int32 for value in sums.state().values())
    assert {name: value.tolist() for name, value in other.state().items()} == {
        "redone": [1], "grid": [3, 6], "bits": [20, 20],
    }  # fmt: skip


def test_the_only_micro_batch_of_a_rank_counts_for_the_grid_too() -> None:
    with alone():
        stepper = Stepper(recipe_of("sgd", "exact"), initial_model(), torch.device("cpu"), 3)
        for step in range(2):
            done = stepper.run(step_batches(step)[0][:1], step, 4)
    assert done.exactness is not None
    assert 12 <= done.exactness.bits_kept <= done.exactness.bits_kept_median <= 21
    assert done.as_dict() == {
        "exact_bits_kept": done.exactness.bits_kept,
        "exact_bits_kept_median": done.exactness.bits_kept_median,
        "exact_steps_redone": 1,
    }


# -- a GPU's calls, and pieces -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_sums", [True, False])
@pytest.mark.parametrize("has_grid", [True, False])
def test_a_gpus_calls_round_add_and_find_the_largest_as_a_cpus_do(
    monkeypatch: pytest.MonkeyPatch, has_grid: bool, has_sums: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(shape, generator=generator) for shape in ((7,), (3, 4))]
    sums = [torch.randn(shape, generator=generator).round_() for shape in ((7,), (3, 4))] if has_sums else []
    constants = [1.5 * 2.0**10, 1.5 * 2.0**4] if has_grid else []
    on_gpu = [gradient.clone().as_subclass(_AsOnGpu) for gradient in gradients]
    expected = torch.stack([gradient.abs().max() for gradient in gradients])
    assert torch.equal(_round_and_add(on_gpu, constants, sums).as_subclass(Tensor), expected)  # type: ignore[arg-type]
    assert torch.equal(_round_and_add(gradients, constants, sums), expected)
    monkeypatch.delattr(exact_sums, "_in_pieces")
    _round_and_add([each.clone() for each in on_gpu], constants, sums)  # a launch for all of them
    for ours, theirs in zip(gradients, on_gpu, strict=True):
        assert torch.equal(ours, theirs.as_subclass(Tensor))


def test_a_gpus_largest_sizes_are_a_cpus() -> None:
    tensors = [torch.tensor([-3.0, 2.0]), torch.zeros(5), torch.tensor([[1.0], [torch.inf]])]
    on_gpu = largest([tensor.as_subclass(_AsOnGpu) for tensor in tensors])
    assert on_gpu.tolist() == largest(tensors).tolist() == [3.0, 0.0, torch.inf]


def test_a_large_gradient_with_gaps_in_memory_is_rounded_as_any_other() -> None:
    whole = torch.randn(600, 1000, generator=torch.Generator().manual_seed(0))
    gradient, between = whole[:, ::2], whole[:, 1::2].clone()
    expected = (gradient + 1.5 * 2.0**10) - 1.5 * 2.0**10
    largest_size = gradient.abs().max()
    assert _round_and_add([gradient], [1.5 * 2.0**10], [])[0] == largest_size
    assert torch.equal(gradient, expected)
    assert torch.equal(whole[:, 1::2], between)


def test_exponents_are_the_least_that_bound_their_number() -> None:
    numbers = [0.5, 0.49, 1.0, 1.5, 2.0, 0.0, 2.0**-126]
    assert exponents_of(torch.tensor(numbers)).tolist() == [0, -1, 1, 1, 2, ZERO, -125]
    assert ZERO < -149 < 128 < NOT_FINITE  # what float32 has
    assert exponents_of(torch.tensor(numbers)).dtype == torch.int32
