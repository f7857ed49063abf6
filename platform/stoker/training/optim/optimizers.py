"""Optimisers by name, with weight decay where it belongs; their state as named tensors, without pickle."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stoker import recipe as recipes
from stoker.models import layers_of
from stoker.training.optim.lamb import Lamb

__all__ = ["build_optimizer", "load_optimizer_tensors", "optimizer_tensors", "set_learning_rate"]

_EMBEDDINGS = ("class_token", "pos_embedding", "relative_position_bias_table")
"""what torchvision's transformers call their class tokens and position embeddings"""


def build_optimizer(model: nn.Module, chosen: recipes.Optimizer) -> torch.optim.Optimizer:
    """The recipe's optimiser over ``model``'s parameters that are trained.

    Norms and biases (whatever has one dimension) are not decayed unless the recipe says so, nor embeddings if it says
    so. A group's ``share`` is that of the rate that its layer has (:func:`set_learning_rate`): 1 for the head,
    ``layer_decay`` for the layer below it, its square for the next (Clark and others, *ELECTRA*, ICLR 2020, appendix).
    """
    groups = []
    for share, names in _shares(model, chosen.layer_decay):
        decayed: list[Tensor] = []
        others: list[Tensor] = []
        for name in names:
            parameter = model.get_parameter(name)
            if parameter.requires_grad:
                (decayed if _is_decayed(name, parameter, chosen) else others).append(parameter)
        groups.append({"params": decayed, "weight_decay": chosen.weight_decay, "share": share})
        groups.append({"params": others, "weight_decay": 0.0, "share": share})
    groups = [group for group in groups if group["params"]]
    optimizer: torch.optim.Optimizer
    if chosen.name == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=chosen.lr, betas=chosen.betas, eps=chosen.eps, fused=True)
    elif chosen.name == "lamb":
        optimizer = Lamb(groups, lr=chosen.lr, betas=chosen.betas, eps=chosen.eps)
    else:
        nesterov = chosen.nesterov and chosen.momentum > 0
        optimizer = torch.optim.SGD(groups, lr=chosen.lr, momentum=chosen.momentum, nesterov=nesterov, fused=True)
    set_learning_rate(optimizer, chosen.lr)
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give each group of ``optimizer`` its share of ``rate``."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("share", 1.0)


def _shares(model: nn.Module, layer_decay: float) -> list[tuple[float, list[str]]]:
    if layer_decay == 1.0:
        return [(1.0, [name for name, _ in model.named_parameters()])]
    layers = layers_of(model)
    return [(layer_decay ** (len(layers) - 1 - depth), names) for depth, names in enumerate(layers)]


def _is_decayed(name: str, parameter: Tensor, chosen: recipes.Optimizer) -> bool:
    if parameter.ndim <= 1:
        return chosen.decay_norm_and_bias
    return chosen.decay_embeddings or name.rpartition(".")[2] not in _EMBEDDINGS


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
