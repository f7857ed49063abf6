"""Clipping: the norm of all gradients together, bounded as torch's own function does."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from stoker.training.optim import clipping
from stoker.training.optim.clipping import clip_gradients


def gradients(size: float) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [size * torch.randn(shape, generator=generator) for shape in ((4, 3), (5,), (2, 2, 2))]


def clipped_by_torch(given: list[Tensor], limit: float) -> tuple[list[Tensor], Tensor]:
    parameters = [nn.Parameter(torch.zeros_like(gradient)) for gradient in given]
    for parameter, gradient in zip(parameters, given, strict=True):
        parameter.grad = gradient.clone()
    norm = nn.utils.clip_grad_norm_(parameters, limit)
    return [parameter.grad for parameter in parameters if parameter.grad is not None], norm


@pytest.mark.parametrize("in_fixed_order", [True, False])
@pytest.mark.parametrize("size", [1e-6, 0.01, 1.0, 100.0])
@pytest.mark.parametrize("limit", [0.5, 1e-6])
def test_gradients_are_scaled_and_their_norm_told_as_by_torch(size: float, limit: float, in_fixed_order: bool) -> None:
    found = gradients(size)
    expected, norm = clipped_by_torch(found, limit)
    told = clip_gradients(found, limit, in_fixed_order=in_fixed_order)
    torch.testing.assert_close(told, norm)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0.0)


def test_gradients_within_the_limit_keep_their_bits() -> None:
    found = gradients(0.01)
    before = copy.deepcopy(found)
    clip_gradients(found, 1.0, in_fixed_order=True)
    assert all(torch.equal(a, b) for a, b in zip(found, before, strict=True))


def test_a_fixed_order_sums_one_copy_of_all_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the bits do not depend on how many tensors the sums of squares are spread over."""
    summed: list[tuple[int, ...]] = []
    norm = torch.linalg.vector_norm

    def seen(tensor: Tensor) -> Tensor:
        summed.append(tuple(tensor.shape))
        return norm(tensor)

    monkeypatch.setattr(clipping.torch.linalg, "vector_norm", seen)
    clip_gradients(gradients(1.0), 1.0, in_fixed_order=True)
    clip_gradients(gradients(1.0), 1.0, in_fixed_order=False)
    assert summed == [(25,), (3,)]
