"""The learning rate at every step: that of torch's own schedulers, and defined beyond the end."""

from __future__ import annotations

import pytest
import torch
from torch.optim import lr_scheduler

from stoker.recipe import Schedule
from stoker.training.optim.schedule import learning_rate_ratio

STEPS = 5
"""in an epoch"""


def ours(schedule: Schedule, steps: int) -> list[float]:
    return [learning_rate_ratio(schedule, step, STEPS) for step in range(steps)]


def by_torch(schedule: Schedule, steps: int, warmup: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    rest = schedule.epochs * STEPS - warmup
    after: lr_scheduler.LRScheduler
    match schedule.shape:
        case "cosine":
            after = lr_scheduler.CosineAnnealingLR(optimizer, rest, eta_min=schedule.final_lr_ratio)
        case "linear":
            after = lr_scheduler.LinearLR(optimizer, 1.0, schedule.final_lr_ratio, rest)
        case "steps":
            after = lr_scheduler.StepLR(optimizer, schedule.step_epochs * STEPS, schedule.step_factor)
    rise = lr_scheduler.LinearLR(optimizer, 1 / (warmup + 1), total_iters=warmup)
    both = lr_scheduler.SequentialLR(optimizer, [rise, after], [warmup]) if warmup else after
    found = []
    for _ in range(steps):
        found += both.get_last_lr()
        optimizer.step()
        both.step()
    return found


@pytest.mark.parametrize("final", [0.0, 0.2])
@pytest.mark.parametrize("shape", ["cosine", "linear"])
@pytest.mark.parametrize("warmup_epochs", [0.0, 0.2, 2.0])
def test_a_warm_up_and_a_fall_are_those_of_torchs_schedulers(shape: str, final: float, warmup_epochs: float) -> None:
    schedule = Schedule(epochs=6, warmup_epochs=warmup_epochs, shape=shape, final_lr_ratio=final)  # type: ignore[arg-type]
    expected = by_torch(schedule, 6 * STEPS, int(warmup_epochs * STEPS))
    assert ours(schedule, 6 * STEPS) == pytest.approx(expected, abs=1e-9)


def test_steps_are_those_of_torchs_scheduler() -> None:
    schedule = Schedule(epochs=7, shape="steps", step_epochs=2, step_factor=0.3)
    assert ours(schedule, 7 * STEPS) == pytest.approx(by_torch(schedule, 7 * STEPS, 0))


def test_steps_count_epochs_from_the_runs_start_though_it_warms_up() -> None:
    schedule = Schedule(epochs=7, warmup_epochs=1, shape="steps", step_epochs=2, step_factor=0.3)
    found = ours(schedule, 7 * STEPS)
    assert found[:STEPS] == pytest.approx([(n + 1) / (STEPS + 1) for n in range(STEPS)])
    assert found[STEPS : 2 * STEPS] == [1.0] * STEPS
    assert found[2 * STEPS] == pytest.approx(0.3)
    long = Schedule(epochs=7, warmup_epochs=2, shape="steps", step_epochs=2, step_factor=0.3)
    assert ours(long, 7 * STEPS)[2 * STEPS] == pytest.approx(0.3)


def test_the_peak_is_the_first_step_after_the_warm_up_and_no_step_before_it() -> None:
    for warmup_epochs in (0.4, 0.5, 1.0):
        found = ours(Schedule(epochs=4, warmup_epochs=warmup_epochs, shape="linear"), 4 * STEPS)
        first = next(step for step in range(4 * STEPS) if step >= warmup_epochs * STEPS)
        assert all(ratio < 1.0 for ratio in found[:first])
        assert found[first] == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("shape", ["cosine", "linear"])
def test_the_rate_ends_at_its_final_fraction_and_a_run_that_is_all_warm_up_ends_below_its_peak(shape: str) -> None:
    schedule = Schedule(epochs=2, shape=shape, final_lr_ratio=0.25)  # type: ignore[arg-type]
    assert learning_rate_ratio(schedule, 2 * STEPS, STEPS) == pytest.approx(0.25)
    rising = Schedule(epochs=2, warmup_epochs=2, shape=shape, final_lr_ratio=0.25)  # type: ignore[arg-type]
    assert ours(rising, 2 * STEPS) == pytest.approx([(n + 1) / 11 for n in range(10)])
    assert learning_rate_ratio(rising, 2 * STEPS, STEPS) == 1.0
    assert learning_rate_ratio(rising, 2 * STEPS + 1, STEPS) == pytest.approx(0.25)


def test_a_cosine_stays_at_its_end_beyond_it() -> None:
    schedule = Schedule(epochs=2, final_lr_ratio=0.1)
    assert [learning_rate_ratio(schedule, step, STEPS) for step in (10, 13, 20)] == pytest.approx([0.1] * 3)
