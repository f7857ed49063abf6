"""Running statistics: moved once a step by each layer's own momentum, by micro-batches that count, on every rank."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from plain_loop import alone
from stoker.training.step import batch_norm
from stoker.training.step.batch_norm import RunningStatistics
from stoker.training.step.exact_sums import ZERO


def parts(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(count)
    return [torch.randn(4, 2, 3, 3, generator=generator) * (n + 1) + n for n in range(count)]


def step(statistics: RunningStatistics, model: nn.Module, given: list[Tensor], micro_batches: int) -> None:
    statistics.begin_step()
    for part in given:
        model(part)
        statistics.add_micro_batch()
    statistics.end_step(micro_batches, statistics.exponents())


@pytest.mark.parametrize("exact", [True, False])
def test_each_layer_moves_by_its_own_momentum_and_torchs_where_it_has_none(exact: bool) -> None:
    momenta = (0.5, 0.1, 0.25)
    norms = [nn.BatchNorm2d(2, momentum=momentum) for momentum in (0.5, None, 0.25)]
    model = nn.Sequential(norms[0], nn.Conv2d(2, 2, 1), norms[1], norms[2])
    statistics, seen = RunningStatistics(model, exact=exact), []
    norms[1].register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    for _ in range(2):
        for norm in norms:
            norm.running_mean.fill_(2.0)  # type: ignore[union-attr]
            norm.running_var.fill_(3.0)  # type: ignore[union-attr]
        step(statistics, model, parts(3), 3)
    inputs = {0: parts(3), 1: seen[-3:]}
    for n, of_layer in inputs.items():
        mean = torch.stack([part.mean(dim=(0, 2, 3)) for part in of_layer]).mean(dim=0)
        variance = torch.stack([part.var(dim=(0, 2, 3)) for part in of_layer]).mean(dim=0)
        momentum = momenta[n]
        torch.testing.assert_close(norms[n].running_mean, (1 - momentum) * 2.0 + momentum * mean)
        torch.testing.assert_close(norms[n].running_var, (1 - momentum) * 3.0 + momentum * variance)
    assert [int(norm.num_batches_tracked) for norm in norms] == [2, 2, 2]  # type: ignore[arg-type]


@pytest.mark.parametrize("exact", [True, False])
def test_a_rank_without_a_micro_batch_takes_the_others_statistics(exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, other = nn.Sequential(nn.BatchNorm2d(2)), nn.Sequential(nn.BatchNorm2d(2))
    alone_, told = RunningStatistics(model, exact=exact), []
    theirs = RunningStatistics(other, exact=exact)
    monkeypatch.setattr(batch_norm, "_add_ranks", lambda total: told.append(total.clone()))
    step(theirs, other, parts(2), 2)
    monkeypatch.setattr(batch_norm, "_add_ranks", lambda total: total.add_(told[0]))
    alone_.begin_step()
    model(torch.randn(2, 2, 3, 3))  # padding, which does not count
    assert alone_.exponents().tolist() == [ZERO, ZERO]
    alone_.end_step(2, torch.tensor(_exponents(parts(2)), dtype=torch.int32))
    torch.testing.assert_close(model[0].running_mean, other[0].running_mean)
    torch.testing.assert_close(model[0].running_var, other[0].running_var)
    assert int(model[0].num_batches_tracked) == 1


def _exponents(given: list[Tensor]) -> list[int]:
    """Those of the largest mean and the largest variance of any micro-batch."""
    means = max(float(part.mean(dim=(0, 2, 3)).abs().max()) for part in given)
    variances = max(float(part.var(dim=(0, 2, 3)).max()) for part in given)
    return [int(torch.frexp(torch.tensor(value)).exponent) for value in (means, variances)]


def test_exponents_are_those_of_the_largest_statistics_of_any_micro_batch() -> None:
    model = nn.Sequential(nn.BatchNorm2d(2))
    statistics = RunningStatistics(model, exact=True)
    statistics.begin_step()
    for part in reversed(parts(4)):
        model(part)
        statistics.add_micro_batch()
    assert statistics.exponents().tolist() == _exponents(parts(4))


def test_micro_batches_of_a_step_that_is_repeated_count_once() -> None:
    model = nn.Sequential(nn.BatchNorm2d(2))
    statistics = RunningStatistics(model, exact=True)
    statistics.begin_step()
    model(parts(3)[2])
    statistics.add_micro_batch()
    statistics.begin_again()
    for part in parts(2):
        model(part)
        statistics.add_micro_batch()
    statistics.end_step(2, statistics.exponents())
    mean = torch.stack([part.mean(dim=(0, 2, 3)) for part in parts(2)]).mean(dim=0)
    torch.testing.assert_close(model[0].running_mean, 0.1 * mean)


def test_a_step_that_follows_starts_anew() -> None:
    model = nn.Sequential(nn.BatchNorm2d(2, momentum=1.0))
    statistics = RunningStatistics(model)
    for count in (3, 2):
        statistics.begin_step()
        for part in parts(count):
            model(part)
            statistics.add_micro_batch()
        statistics.end_step(count)
    mean = torch.stack([part.mean(dim=(0, 2, 3)) for part in parts(2)]).mean(dim=0)
    torch.testing.assert_close(model[0].running_mean, mean)


def test_statistics_are_rounded_to_a_grid_that_leaves_their_sum_52_bits() -> None:
    model = nn.Sequential(nn.BatchNorm2d(1, momentum=1.0))
    statistics = RunningStatistics(model, exact=True)
    statistics.begin_step()
    model[0].running_mean.fill_(1 + 2.0**-23)
    model[0].running_var.fill_(2.0**-20)
    statistics.add_micro_batch()
    total = statistics._exact_sum(8, torch.tensor([40, -19], dtype=torch.int32))
    # 2^40 with 52 bits, four of them for a sum of up to 8: a grid of 2^(40 - 48)
    assert total.tolist() == [1.0, 2.0**-20]
    assert statistics._exact_sum(8, torch.tensor([25, -19], dtype=torch.int32)).tolist() == [1 + 2.0**-23, 2.0**-20]
    assert statistics._exact_sum(8, torch.tensor([26, -19], dtype=torch.int32)).tolist() == [1.0, 2.0**-20]


@pytest.mark.parametrize("model", [nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False)])
def test_a_model_without_running_statistics_has_none_to_move(model: nn.Module) -> None:
    statistics = RunningStatistics(model, exact=True)
    statistics.begin_step()
    model(torch.randn(4, 2))
    statistics.add_micro_batch()
    assert statistics.exponents().tolist() == []
    assert statistics.exponents().dtype == torch.int32
    statistics.end_step(1, None)


def test_a_single_rank_sends_nothing_and_two_add(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Tensor] = []
    monkeypatch.setattr(dist, "all_reduce", sent.append)
    batch_norm._add_ranks(torch.ones(1))
    with alone():
        batch_norm._add_ranks(torch.ones(1))
        assert sent == []
        monkeypatch.setattr(dist, "get_world_size", lambda: 2)
        batch_norm._add_ranks(total := torch.ones(1))
    assert [each is total for each in sent] == [True]
