"""Optimisers by name, with weight decay where it belongs; their state as named tensors, without pickle.

A new optimiser is a row of :data:`OPTIMIZERS` (and a file, if it is one of ours) and its name in the recipe's
``OptimizerName``. The tests train each row, save its state, restore it, and look its name up in the docs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from stoker import recipe as recipes
from stoker.models import layers_of
from stoker.models.catalog import EMBEDDINGS
from stoker.training.optim.lamb import Lamb

__all__ = ["OPTIMIZERS", "build_optimizer", "load_optimizer_tensors", "optimizer_tensors", "set_learning_rate"]

Factory = Callable[[list[dict[str, Any]], recipes.Optimizer], torch.optim.Optimizer]


def _sgd(groups: list[dict[str, Any]], chosen: recipes.Optimizer) -> torch.optim.Optimizer:
    """Give torch's SGD momenta of zero to begin with.

    Left to itself, its fused kernel allocates them in the first step without a value, and leaves them so where that
    step is skipped because float16 overflowed; the next step then moves the weights by whatever was in memory.
    """
    nesterov = chosen.nesterov and chosen.momentum > 0
    sgd = torch.optim.SGD(groups, lr=chosen.lr, momentum=chosen.momentum, nesterov=nesterov, fused=True)
    if chosen.momentum:
        for parameter in (parameter for group in sgd.param_groups for parameter in group["params"]):
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
    return sgd


OPTIMIZERS: dict[str, Factory] = {
    "sgd": _sgd,
    "adamw": lambda groups, chosen: torch.optim.AdamW(
        groups, lr=chosen.lr, betas=chosen.betas, eps=chosen.eps, fused=True
    ),
    "lamb": lambda groups, chosen: Lamb(groups, lr=chosen.lr, betas=chosen.betas, eps=chosen.eps),
}
"""name in the recipe to a function that builds the optimiser over parameter groups, which carry their weight decay"""


def build_optimizer(model: nn.Module, chosen: recipes.Optimizer) -> torch.optim.Optimizer:
    """Build the recipe's optimiser over the parameters of ``model`` that are trained.

    Norms and biases (parameters of one dimension) are not decayed unless the recipe says so, nor are embeddings if it
    says so. ``rate_scale`` of a group is the factor of its learning rate (:func:`set_learning_rate`): 1 for the head,
    ``layer_decay`` for the layer below it, its square for the next (Clark and others, *ELECTRA*, ICLR 2020, appendix).
    """
    groups = []
    for rate_scale, names in _rate_scales(model, chosen.layer_decay):
        decayed: list[Tensor] = []
        others: list[Tensor] = []
        for name in names:
            parameter = model.get_parameter(name)
            if parameter.requires_grad:
                (decayed if _is_decayed(name, parameter, chosen) else others).append(parameter)
        groups.append({"params": decayed, "weight_decay": chosen.weight_decay, "rate_scale": rate_scale})
        groups.append({"params": others, "weight_decay": 0.0, "rate_scale": rate_scale})
    optimizer = OPTIMIZERS[chosen.name]([group for group in groups if group["params"]], chosen)
    set_learning_rate(optimizer, chosen.lr)
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of each group of ``optimizer`` to ``rate`` times its ``rate_scale``."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("rate_scale", 1.0)


def _rate_scales(model: nn.Module, layer_decay: float) -> list[tuple[float, list[str]]]:
    if layer_decay == 1.0:
        return [(1.0, [name for name, _ in model.named_parameters()])]
    layers = layers_of(model)
    return [(layer_decay ** (len(layers) - 1 - depth), names) for depth, names in enumerate(layers)]


def _is_decayed(name: str, parameter: Tensor, chosen: recipes.Optimizer) -> bool:
    if parameter.ndim <= 1:
        return chosen.decay_norm_and_bias
    return chosen.decay_embeddings or name.rpartition(".")[2] not in EMBEDDINGS


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """State of ``optimizer``: ``<parameter's name>/<state's name>`` to tensor, on the device that holds it."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}/{key}": value
        for parameter, state in ((p, optimizer.state[p]) for p in model.parameters() if p in optimizer.state)
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Restore the state that :func:`optimizer_tensors` returned.

    Raises:
        KeyError: a tensor belongs to a parameter that the model does not have.
    """
    parameters = dict(model.named_parameters())
    for name, value in tensors.items():
        parameter_name, _, key = name.rpartition("/")
        parameter = parameters[parameter_name]
        own = torch.empty_like(parameter if value.shape == parameter.shape else value, device=parameter.device)
        optimizer.state[parameter][key] = own.detach().copy_(value)
