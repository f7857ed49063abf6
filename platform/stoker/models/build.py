"""Build models by name: every classification model of torchvision, and those of ours."""

from __future__ import annotations

import importlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision import models

from stoker import recipe as recipes
from stoker.errors import ModelError
from stoker.models.blur_pool import blur_before_strides
from stoker.models.catalog import AUXILIARY_HEADS, Family, check_model_name, family_of

__all__ = ["as_state_dict", "build_model", "check_images", "load_weights", "model_on_meta", "model_options"]


def build_model(
    name: str,
    *,
    classes: int,
    drop_rate: float | None = None,
    stochastic_depth: float | None = None,
    blur_pool: bool = False,
    image_size: int | None = None,
    auxiliary: bool = False,
) -> nn.Module:
    """Build a model with fresh weights: float32 images [n, 3, H, W], normalised, to logits [n, classes].

    Weights are drawn from torch's generator: seed it first. ``drop_rate`` and ``stochastic_depth`` are probabilities,
    for the families that have either. ``blur_pool`` blurs before strided convolutions (:mod:`stoker.models.blur_pool`).
    ``image_size`` is the side of the images in pixels; only families that must know it use it. ``auxiliary`` adds the
    heads that GoogLeNet and Inception have in training, when they return a tuple
    (:func:`~stoker.models.training_loss`). What each family takes is in :mod:`stoker.models.catalog`.

    Raises:
        ModelError: the name is unknown (the message has the nearest names), or the model does not take ``drop_rate``,
            ``stochastic_depth`` or this ``image_size``.
    """
    check_model_name(name)
    family = family_of(name)
    options: dict[str, object] = {"num_classes": classes}
    if drop_rate is not None and "drop_rate" not in family.ignored:
        if not family.has_dropout:
            raise ModelError(f"model.drop_rate: {name} has no dropout; leave it out")
        options["dropout"] = drop_rate
    if stochastic_depth is not None and "stochastic_depth" not in family.ignored:
        if not family.has_stochastic_depth:
            raise ModelError(f"model.stochastic_depth: {name} has no stochastic depth; leave it out")
        options["stochastic_depth_prob"] = stochastic_depth
    if family.auxiliary_heads:
        options |= {"aux_logits": auxiliary, "init_weights": True}
    if image_size is not None and family.image_options is not None:
        options |= family.image_options(image_size)
    try:
        model = _builder(name, family)(**options)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ModelError(f"data.image_size: {name} cannot be built for {image_size} pixels ({_line(error)})") from None
    return blur_before_strides(model) if blur_pool else model


def model_options(chosen: recipes.Model, image_size: int) -> dict[str, Any]:
    """Keyword arguments for :func:`build_model` from a recipe's ``model`` section; ``image_size`` in pixels."""
    return {
        "drop_rate": chosen.drop_rate,
        "stochastic_depth": chosen.stochastic_depth,
        "blur_pool": chosen.blur_pool,
        "image_size": image_size,
    }


def model_on_meta(name: str, **options: Any) -> nn.Module:
    """:func:`build_model` on the meta device: shapes and names without memory."""
    with _OnMeta():
        return build_model(name, **options).to("meta")


def check_images(model: nn.Module, name: str, *, sides: Iterable[int], micro: int, last: int) -> None:
    """Send micro-batches of square images of each of ``sides`` pixels through ``model``, which is on the meta device.

    ``micro`` is the samples of a micro-batch, and ``last`` those of an epoch's last one. Nothing is allocated.

    Raises:
        ModelError: images of one of the sides do not go through, or too few of them for its batch norms.
    """
    for side in sides:
        for samples in dict.fromkeys((micro, last)):
            if (refusal := _refusal(model, samples, side)) is None:
                continue
            if samples > 1 or _refusal(model, 2, side) is not None:
                raise ModelError(
                    f"data.image_size: images of {side} pixels in micro-batches of {samples} do not go through {name} "
                    f"({refusal}); choose another size"
                )
            why = f"the batch norms of {name} need more than one image of {side} pixels in a micro-batch"
            if micro == 1:
                raise ModelError(f"batch.micro: {why}; set it to 2 or more")
            raise ModelError(
                f"data.last_batch: {why}, and an epoch's last one has 1 sample; set it to drop, or change batch.total"
            )


def _refusal(model: nn.Module, samples: int, side: int) -> str | None:
    try:
        with torch.no_grad():
            model(torch.empty(samples, 3, side, side, device="meta"))
    except (RuntimeError, ValueError, AssertionError) as error:
        return _line(error)
    return None


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load ``weights`` strictly, but ignore auxiliary heads that ``model`` was built without.

    Raises:
        RuntimeError: they do not fit (torch's own message).
    """
    own = model.state_dict().keys()
    model.load_state_dict(
        as_state_dict(model, {n: t for n, t in weights.items() if n in own or not n.startswith(AUXILIARY_HEADS)})
    )


def as_state_dict(model: nn.Module, weights: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
    """``weights`` as ``model.load_state_dict`` takes them: with the versions of its modules, without which torch
    takes them for a file of years ago (torchvision's MnasNet refuses it)."""
    state = OrderedDict(weights)
    state._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]
    return state


def _builder(name: str, family: Family) -> Callable[..., nn.Module]:
    if family.builder is None:
        return models.get_model_builder(name)
    module, _, attribute = family.builder.partition(":")
    return getattr(importlib.import_module(module), attribute or name)


class _OnMeta(TorchFunctionMode):
    """Allocate on the meta device, except the small tables that a model computes its shape from (the RegNets')."""

    _MEMORY = (torch.empty, torch.zeros, torch.ones, torch.randn, torch.rand)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in self._MEMORY and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
