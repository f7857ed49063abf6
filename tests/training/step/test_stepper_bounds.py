"""The step at its edges: padding alone, what is timed, what is kept for a restart, and what the recipe asks for."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from plain_loop import alone, initial_model, recipe_of, step_batches
from stoker.models import training_loss
from stoker.recipe import Recipe
from stoker.training.optim.clipping import clip_gradients
from stoker.training.step import stepper as module
from stoker.training.step.communication import CommunicationTimer
from stoker.training.step.exact_sums import Exactness, ExactSums
from stoker.training.step.stepper import StepDone, Stepper

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with alone():
        yield
    torch.set_num_threads(threads)


def stepper_of(recipe: Recipe) -> Stepper:
    return Stepper(recipe, initial_model(), CPU, 3)


def changed(recipe: Recipe, **sections: object) -> Recipe:
    return recipe.model_copy(update=sections)


# -- sums --------------------------------------------------------------------------------------------------------------


def test_losses_are_summed_in_whole_multiples_of_a_millionth(monkeypatch: pytest.MonkeyPatch) -> None:
    """2^-20: so that float64 holds their sum in any order."""
    losses: list[float] = []

    def seen(*arguments: object, **options: object) -> Tensor:
        loss: Tensor = training_loss(*arguments, **options) / 97  # type: ignore[arg-type]
        losses.append(float(loss))
        return loss  # below 1, so that float32 has finer ones than the unit

    monkeypatch.setattr(module, "training_loss", seen)
    stepper, (batches, samples) = stepper_of(recipe_of("sgd", "floats")), step_batches(0)
    stepper.run(batches, 0, samples)
    assert len(losses) == 3
    assert float(stepper.totals[0]) == sum(round(loss * 2**20) for loss in losses) / 2**20 != sum(losses)
    assert stepper.totals.dtype == torch.float64


def test_totals_grow_until_somebody_zeroes_them() -> None:
    stepper = stepper_of(recipe_of("sgd", "exact"))
    for step in range(3):
        batches, samples = step_batches(step)
        stepper.run(batches, step, samples)
    assert int(stepper.totals[2]) == 12 + 12 + 5


@pytest.mark.parametrize("exact", ["floats", "exact"])
def test_a_rank_with_padding_alone_goes_once_through_the_model_and_adds_nothing(exact: str) -> None:
    stepper, batches = stepper_of(recipe_of("sgd", exact)), step_batches(2)[0]
    calls: list[int] = []
    stepper.model.register_forward_pre_hook(lambda _, given: calls.append(len(given[0])))
    passes = 2 if exact == "exact" else 1  # the first step with exact sums is repeated
    stepper.run([batches[2], batches[2]], 2, 5)
    assert calls == [2] * passes  # two samples, as batch norms need
    assert stepper.totals.tolist() == [0.0, 0.0, 0.0]
    assert all(float(p.grad.abs().max()) == 0.0 for p in stepper.model.parameters() if p.grad is not None)


def test_padding_among_a_ranks_micro_batches_is_left_out() -> None:
    stepper, batches = stepper_of(recipe_of("sgd", "floats")), step_batches(2)[0]
    calls: list[int] = []
    stepper.model.register_forward_pre_hook(lambda _, given: calls.append(len(given[0])))
    stepper.run(batches, 2, 5)
    assert calls == [4, 1]


def test_each_micro_batch_but_the_last_is_rounded_before_it_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[ExactSums] = []
    absorb = ExactSums.absorb

    def seen(sums: ExactSums) -> None:
        calls.append(sums)
        absorb(sums)

    monkeypatch.setattr(ExactSums, "absorb", seen)
    stepper = stepper_of(recipe_of("sgd", "exact"))
    for step, more in ((0, 4), (1, 2)):  # the first step is repeated
        calls.clear()
        batches, samples = step_batches(step)
        stepper.run(batches, step, samples)
        assert len(calls) == more


def test_a_loss_scale_that_fell_to_nothing_is_no_crash() -> None:
    """A loss that is never finite halves it at each step, until the run looks for the step and stops."""
    stepper = stepper_of(recipe_of("float16", "exact"))
    stepper.load_state_tensors(stepper.state_tensors() | {"loss_scale/scale": torch.tensor(0.0)})
    stepper.run(step_batches(0)[0], 0, 12)


def test_the_grid_is_that_of_gradients_without_the_loss_scale() -> None:
    grids = []
    for scale in (2.0**6, 2.0**12):
        stepper = stepper_of(recipe_of("float16", "exact"))
        stepper.load_state_tensors(stepper.state_tensors() | {"loss_scale/scale": torch.tensor(scale)})
        stepper.run(step_batches(0)[0], 0, 12)
        grids.append(stepper.state_tensors()["exact_sums/grid"])
    assert (grids[0] - grids[1]).abs().max() <= 1  # what float16 rounds away


# -- timing ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("exact", "step", "seconds"), [("floats", 0, 2), ("exact", 0, 5), ("exact", 1, 3)])
def test_waiting_for_other_ranks_is_timed_wherever_it_happens(
    monkeypatch: pytest.MonkeyPatch, exact: str, step: int, seconds: int
) -> None:
    """The last backward pass, the statistics, with exact sums the exponents; a step that is repeated waits again."""
    clock = itertools.count().__next__
    monkeypatch.setattr(CommunicationTimer, "on", lambda _: CommunicationTimer(clock))
    stepper = stepper_of(recipe_of("sgd", exact))
    for number in range(step + 1):
        batches, samples = step_batches(number)
        stepper.communication_timer.pop_seconds()
        stepper.run(batches, number, samples)
    assert stepper.communication_timer.pop_seconds() == seconds


def test_a_rank_without_a_sample_times_its_wait_too(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count().__next__
    monkeypatch.setattr(CommunicationTimer, "on", lambda _: CommunicationTimer(clock))
    stepper = stepper_of(recipe_of("sgd", "floats"))
    stepper.run(step_batches(2)[0][2:], 2, 5)
    assert stepper.communication_timer.pop_seconds() == 2


# -- state -------------------------------------------------------------------------------------------------------------


def test_a_step_tells_its_rate_and_what_exact_sums_cost() -> None:
    done = stepper_of(recipe_of("sgd", "floats")).run(step_batches(0)[0], 0, 12)
    assert (done.rate, done.exactness, done.as_dict()) == (pytest.approx(0.1 / 3), None, {})
    assert StepDone(0.1, Exactness(1, 2, 3)).as_dict() == {
        "exact_bits_kept": 1, "exact_bits_kept_median": 2, "exact_steps_redone": 3,
    }  # fmt: skip


@pytest.mark.parametrize("case", ["sgd", "float16"])
@pytest.mark.parametrize("exact", ["floats", "exact"])
def test_what_a_step_keeps_for_a_restart_comes_back(case: str, exact: str) -> None:
    first, second = (stepper_of(recipe_of(case, exact)) for _ in range(2))
    for step in range(2):
        batches, samples = step_batches(step)
        first.run(batches, step, samples)
    state = first.state_tensors()
    scale = {"loss_scale/scale", "loss_scale/growth_factor", "loss_scale/backoff_factor", "loss_scale/growth_interval",
             "loss_scale/_growth_tracker"}  # fmt: skip
    sums = {"exact_sums/redone", "exact_sums/grid", "exact_sums/bits"}
    assert state.keys() == (scale if case == "float16" else set()) | (sums if exact == "exact" else set())
    second.load_state_tensors(state)
    again = second.state_tensors()
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], value) for name, value in state.items())
    if case == "float16":
        assert float(state["loss_scale/_growth_tracker"]) == 2
        assert all(state[name].dtype == torch.float64 for name in scale)
        tracked = second._scaler.state_dict()
        assert [type(tracked[key]) for key in ("growth_interval", "_growth_tracker")] == [int, int]


def test_a_state_of_a_run_that_was_not_exact_or_scaled_is_taken_as_it_is() -> None:
    stepper = stepper_of(recipe_of("float16", "exact"))
    before = stepper.state_tensors()
    stepper.load_state_tensors({})
    assert all(torch.equal(value, before[name]) for name, value in stepper.state_tensors().items())
    plain = stepper_of(recipe_of("sgd", "floats"))
    plain.load_state_tensors(before)
    assert plain.state_tensors() == {}


# -- options -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exact", ["floats", "exact"])
def test_the_norm_is_summed_in_a_fixed_order_only_where_bits_count(monkeypatch: pytest.MonkeyPatch, exact: str) -> None:
    asked: list[tuple[int, float, bool]] = []

    def seen(gradients: list[Tensor], limit: float, *, in_fixed_order: bool) -> Tensor:
        asked.append((len(gradients), limit, in_fixed_order))
        return clip_gradients(gradients, limit, in_fixed_order=in_fixed_order)

    monkeypatch.setattr(module, "clip_gradients", seen)
    for case in ("sgd-clipped", "sgd"):
        stepper_of(recipe_of(case, exact)).run(step_batches(0)[0], 0, 12)
    assert asked == [(len(list(initial_model().parameters())), 0.2, exact == "exact")]


@pytest.mark.parametrize("is_last", [True, False])
def test_weights_are_laid_out_as_the_recipe_says(is_last: bool) -> None:
    model = stepper_of(changed(recipe_of("sgd", "floats"), channels_last=is_last)).model
    assert model.first[0].weight.is_contiguous(memory_format=torch.channels_last) is is_last  # type: ignore[index,union-attr]


def test_batch_norms_are_synchronised_where_the_recipe_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "data_parallel", lambda *_: None)  # it refuses them without a GPU
    recipe = recipe_of("sgd", "floats")
    for is_synchronised in (True, False):
        stepper = stepper_of(changed(recipe, sync_batch_norm=is_synchronised))
        norms = [m for m in stepper.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        assert [isinstance(norm, nn.SyncBatchNorm) for norm in norms] == [is_synchronised] * 2


@pytest.mark.parametrize(("name", "weight"), [("googlenet", 0.3), ("inception_v3", 0.4)])
def test_an_auxiliary_heads_loss_weighs_what_its_family_says_unless_the_recipe_does(name: str, weight: float) -> None:
    recipe = recipe_of("sgd", "floats")
    found = []
    for given in (None, weight, 0.9):
        loss = recipe.loss.model_copy(update={"auxiliary_weight": given})
        of_family = changed(recipe, loss=loss, model=recipe.model.model_copy(update={"name": name}))
        stepper = stepper_of(of_family)
        stepper.run(step_batches(0)[0], 0, 12)
        found.append(float(stepper.totals[0]))
    assert found[0] == found[1] < found[2]


def test_the_evaluated_model_is_the_average_where_there_is_one() -> None:
    averaged = stepper_of(recipe_of("sgd", "floats"))
    assert averaged.average is not None
    assert averaged.evaluated_model is averaged.average.model is not averaged.model
    plain = stepper_of(recipe_of("sgd-plain", "floats"))
    assert plain.evaluated_model is plain.model


def test_frozen_parameters_take_no_part_in_sums_and_clipping() -> None:
    model = initial_model()
    model.first[0].weight.requires_grad_(False)  # type: ignore[index,union-attr]
    before = copy.deepcopy(model.state_dict())
    stepper = Stepper(recipe_of("sgd-clipped", "exact"), model, CPU, 3)
    stepper.run(step_batches(0)[0], 0, 12)
    stepper.run(step_batches(1)[0], 1, 12)
    assert len(stepper.state_tensors()["exact_sums/grid"]) == len(list(model.parameters())) - 1
    assert torch.equal(stepper.model.state_dict()["first.0.weight"], before["first.0.weight"])
    assert not torch.equal(stepper.model.state_dict()["second.0.weight"], before["second.0.weight"])
