"""Optimisers by name, with weight decay where it belongs; their state as named tensors, without pickle."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stoker import recipe as recipes

__all__ = ["build_optimizer", "load_optimizer_tensors", "optimizer_tensors"]


def build_optimizer(model: nn.Module, chosen: recipes.Optimizer) -> torch.optim.Optimizer:
    """The recipe's optimiser over ``model``'s parameters; norms and biases are not decayed unless it says so."""
    decayed = [p for p in model.parameters() if p.requires_grad and (p.ndim > 1 or chosen.decay_norm_and_bias)]
    others = [p for p in model.parameters() if p.requires_grad and not (p.ndim > 1 or chosen.decay_norm_and_bias)]
    groups = [{"params": decayed, "weight_decay": chosen.weight_decay}, {"params": others, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if chosen.name == "adamw":
        return torch.optim.AdamW(groups, lr=chosen.lr, betas=chosen.betas, fused=True)
    nesterov = chosen.nesterov and chosen.momentum > 0
    return torch.optim.SGD(groups, lr=chosen.lr, momentum=chosen.momentum, nesterov=nesterov, fused=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The optimiser's state as ``<parameter's name>/<state's name>`` to tensor, on whatever device it is."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}/{key}": value
        for parameter, state in ((p, optimizer.state[p]) for p in model.parameters() if p in optimizer.state)
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put back what :func:`optimizer_tensors` gave.

    Raises:
        KeyError: a tensor belongs to a parameter that the model does not have.
    """
    parameters = dict(model.named_parameters())
    for name, value in tensors.items():
        parameter_name, _, key = name.rpartition("/")
        parameter = parameters[parameter_name]
        mine = torch.empty_like(parameter if value.shape == parameter.shape else value, device=parameter.device)
        optimizer.state[parameter][key] = mine.detach().copy_(value)
