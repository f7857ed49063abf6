"""Parts of a model by name: its head, and its layers from the image to the head."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from stoker.models.catalog import CONTAINERS

__all__ = ["classes_of", "head_names", "layers_of"]


def classes_of(model: nn.Module) -> int:
    """Number of classes of ``model``: the last parameter of every architecture belongs to its head."""
    *_, last = model.parameters()
    return int(last.shape[0])


def head_names(model: nn.Module, other: nn.Module) -> frozenset[str]:
    """Names of the parameters of ``model``'s heads: the modules whose shapes depend on the number of classes.

    ``other`` is the same architecture with another number of classes; both may be on the meta device.
    """
    theirs = {name: parameter.shape for name, parameter in other.named_parameters()}
    differing = {name.rpartition(".")[0] for name, p in model.named_parameters() if p.shape != theirs[name]}
    return frozenset(name for name, _ in model.named_parameters() if name.rpartition(".")[0] in differing)


def layers_of(model: nn.Module) -> list[list[str]]:
    """Names of ``model``'s parameters, layer by layer from the image to the head.

    A layer is a block of the architecture (a residual block, a transformer block, a convolution with its norm). What
    has no matrix of its own (a norm, a class token, a position embedding) belongs to the layer before, or to the first.
    """
    layers: list[list[str]] = []
    early: list[str] = []
    for names, is_layer in _units(model, ""):
        if is_layer:
            layers.append(names)
        elif layers:
            layers[-1].extend(names)
        else:
            early.extend(names)
    if early:
        layers[:1] = [early + (layers[0] if layers else [])]
    return layers


def _units(module: nn.Module, prefix: str) -> Iterator[tuple[list[str], bool]]:
    """(names of parameters, whether they make a layer) for each block below ``module``."""
    own = [f"{prefix}{name}" for name, _ in module.named_parameters(recurse=False)]
    if own:
        yield own, False
    for name, child in module.named_children():
        place = f"{prefix}{name}."
        # Subclasses of Sequential are blocks (a convolution with its norm); Sequential itself only lists blocks.
        if _is_container(child):
            yield from _units(child, place)
        elif parameters := dict(child.named_parameters()):
            yield [place + inner for inner in parameters], any(p.ndim > 1 for p in parameters.values())


def _is_container(module: nn.Module) -> bool:
    kind = type(module)
    return kind in (nn.Sequential, nn.ModuleList) or f"{kind.__module__}.{kind.__qualname__}" in CONTAINERS
