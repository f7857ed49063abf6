"""Initialize a run's model: with fresh weights, or from pretrained ones with a new head and frozen parts.

check_initialization    the driver, before resources are taken   shapes only: name, options, sizes, frozen, weights
training_model          each rank                                fresh weights from the seed, frozen parts
initial_weights         rank 0, unless a checkpoint exists       the pretrained weights that go into the model
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

from stoker import recipe as recipes
from stoker.errors import ModelError
from stoker.models import build_model, check_images, freeze, head_names, model_on_meta, model_options
from stoker.models.catalog import family_of
from stoker.models.pretrained import (
    TensorMatch,
    match_tensors,
    read_shapes,
    read_weights,
    resize_positions,
    with_our_names,
)
from stoker.recipe import Recipe
from stoker.storage import locate

__all__ = ["check_initialization", "initial_weights", "training_model"]

Value = TypeVar("Value")


def check_initialization(
    recipe: Recipe, classes: tuple[str, ...], *, timeout_s: float, last: int | None = None
) -> str | None:
    """Check that :func:`training_model` and :func:`initial_weights` will succeed; only the shapes are compared.

    ``last`` is the number of samples in an epoch's last micro-batch, by default those of any other. Reads at most the
    weights' file, for at most ``timeout_s`` seconds of retries. Returns a line that says what the model is initialized
    from; None without weights.

    Raises:
        ModelError: the model cannot be built, images of one of the sizes do not go through it, or weights do not fit.
        StorageError: the weights cannot be read.
    """
    options, count = _options(recipe), len(classes)
    sizes = {recipe.data.image_size_at(epoch) for epoch in range(recipe.schedule.epochs)}
    sizes.add(recipe.evaluation_image_size)
    name, micro = recipe.model.name, recipe.batch.micro
    model = _freeze(model_on_meta(name, classes=count, **options), recipe.model, count, options)
    check_images(model, name, sides=sorted(sizes), micro=micro, last=last or micro)
    if (source := _source(recipe.model)) is None:
        return None
    match = _match(recipe, classes, _ours(recipe, classes, read_shapes(locate(source.url, timeout_s=timeout_s))))
    line = f"initialized from {recipe.model.parent}"
    return f"{line}, a new head for {count} classes" if match.new & _head(recipe.model, count, options) else line


def training_model(recipe: Recipe, classes: int) -> nn.Module:
    """Build the recipe's model with fresh weights (from torch's generator), auxiliary heads and frozen parts.

    There are no auxiliary heads where the recipe weighs their losses by 0.

    Raises:
        ModelError: see :func:`check_initialization`.
    """
    options = _options(recipe)
    return _freeze(build_model(recipe.model.name, classes=classes, **options), recipe.model, classes, options)


def initial_weights(recipe: Recipe, classes: tuple[str, ...]) -> dict[str, Tensor]:
    """Read the recipe's ``model.weights`` that a model of :func:`training_model` starts with, by name, on the CPU.

    Tensors that keep their fresh values, those of a new head for example, are not among them; without
    ``model.weights`` there are none. Load them with ``strict=False``.

    Raises:
        ModelError, StorageError: see :func:`check_initialization`.
    """
    if (source := _source(recipe.model)) is None:
        return {}
    weights = _ours(
        recipe, classes, read_weights(locate(source.url, timeout_s=recipe.storage_timeout_s), source.sha256)
    )
    match = _match(recipe, classes, {name: tuple(tensor.shape) for name, tensor in weights.items()})
    projection = family_of(recipe.model.name).patch_projection
    if match.resized and projection is not None:
        weights = resize_positions(weights, recipe.evaluation_image_size, int(weights[projection].shape[-1]))
    return {name: weights[name] for name in sorted(match.loaded)}


def _source(chosen: recipes.Model) -> recipes.Source | None:
    if chosen.weights is None:
        return None
    if chosen.source is None and chosen.names_version:
        raise ModelError(
            f"model.weights: {chosen.weights} is a model version, which stoker train looks up; submit that, or give "
            "the URL of a weights file"
        )
    return chosen.source or recipes.Source(url=chosen.weights)


def _options(recipe: Recipe) -> dict[str, Any]:
    # heads without a loss would never get a gradient, for which DDP would wait
    return model_options(recipe.model, recipe.evaluation_image_size) | {"auxiliary": recipe.loss.auxiliary_weight != 0}


def _head(chosen: recipes.Model, classes: int, options: dict[str, Any]) -> frozenset[str]:
    this, other = (model_on_meta(chosen.name, classes=count, **options) for count in (classes, classes + 1))
    return head_names(this, other)


def _freeze(model: nn.Module, chosen: recipes.Model, classes: int, options: dict[str, Any]) -> nn.Module:
    return freeze(model, chosen.frozen, lambda: _head(chosen, classes, options)) if chosen.frozen else model


def _ours(recipe: Recipe, classes: tuple[str, ...], given: Mapping[str, Value]) -> dict[str, Value]:
    """What a file holds, by the names of the recipe's model."""
    wanted = model_on_meta(recipe.model.name, classes=len(classes), **_options(recipe)).state_dict().keys()
    return with_our_names(recipe.model.name, given, wanted)


def _match(recipe: Recipe, classes: tuple[str, ...], given: dict[str, tuple[int, ...]]) -> TensorMatch:
    chosen, options = recipe.model, _options(recipe)
    state = model_on_meta(chosen.name, classes=len(classes), **options).state_dict()
    known = chosen.source.classes if chosen.source else None
    return match_tensors(
        given,
        {name: tuple(tensor.shape) for name, tensor in state.items()},
        _head(chosen, len(classes), options),
        keeps_head=chosen.head == "auto" and known in (None, classes),
        what=f"model.weights: {chosen.parent} for a {chosen.name}",
        positions=family_of(chosen.name).position_embedding,
    )
