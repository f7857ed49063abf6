"""Freeze parts of a model: their parameters are not trained, and their batch norms keep their statistics."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from stoker.errors import ModelError

__all__ = ["FrozenBatchNorm", "freeze"]


class FrozenBatchNorm(nn.Module):
    """A batch norm that is always in evaluation mode: its running statistics never change.

    Its tensors have the names of those of the batch norm that it replaces, so weights fit either way. It is not a
    subclass of batch norm, so code that collects running statistics or converts batch norms passes it over.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm) -> None:
        super().__init__()
        self.eps = norm.eps
        self.weight, self.bias = norm.weight, norm.bias
        for name, buffer in norm.named_buffers(recurse=False):
            self.register_buffer(name, buffer)

    def forward(self, features: Tensor) -> Tensor:
        return functional.batch_norm(
            features, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )


def freeze(
    model: nn.Module, patterns: tuple[str, ...] | Literal["backbone"], head: Callable[[], Iterable[str]]
) -> nn.Module:
    """Exclude parameters of ``model`` from training; batch norms that are wholly frozen keep their statistics.

    ``patterns`` are names, prefixes of names (``layer1`` is all below it) or shell patterns (``layer?.*``); or
    ``backbone``, everything but the head, for a linear probe. ``head`` returns the names of the head's parameters.
    Returns ``model``.

    Raises:
        ModelError: a pattern matches nothing, or nothing is left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    if patterns == "backbone":
        kept = frozenset(head())
        frozen = [name for name in names if name not in kept]
    else:
        frozen = []
        for pattern in patterns:
            matched = [
                n for n in names if n == pattern or n.startswith(pattern.rstrip(".") + ".") or fnmatchcase(n, pattern)
            ]
            if not matched:
                raise ModelError(
                    f"model.frozen: {pattern!r} matches no parameter of the model; {_hint(pattern, names)}"
                )
            frozen.extend(matched)
    if len(set(frozen)) == len(names):
        raise ModelError("model.frozen: every parameter would be frozen and none trained; leave the head out")
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    _freeze_norms(model)
    return model


def _freeze_norms(model: nn.Module) -> None:
    for name, child in model.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm) and _is_frozen(child):
            setattr(model, name, FrozenBatchNorm(child))
        else:
            _freeze_norms(child)


def _is_frozen(norm: nn.modules.batchnorm._BatchNorm) -> bool:
    has_statistics = norm.affine and norm.running_mean is not None
    return has_statistics and not any(parameter.requires_grad for parameter in norm.parameters())


def _hint(pattern: str, names: list[str]) -> str:
    starts = sorted({".".join(name.split(".")[:depth]) for name in names for depth in (1, 2, 3)})
    near = difflib.get_close_matches(pattern, starts, n=3)
    return (
        f"did you mean {' or '.join(near)}?"
        if near
        else f"it has {', '.join(dict.fromkeys(n.split('.')[0] for n in names))}"
    )
