"""Architectures by name: every classification model of torchvision, and a small one for 32 pixel inputs."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision import models

from stoker import recipe as recipes
from stoker.errors import ModelError
from stoker.models.blur_pool import blur_before_strides
from stoker.models.digitsnet import DigitsNet
from stoker.models.losses import auxiliary_weight

__all__ = ["build_model", "check_model", "load_weights", "model_names", "model_on_meta", "model_options"]

_OWN = "digitsnet"
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
"""where torchvision keeps the heads that only training has"""


def model_names() -> list[str]:
    """Every name that :func:`build_model` knows, sorted."""
    return sorted([*models.list_models(module=models), _OWN])


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
    """A model with fresh weights: float32 images [n, 3, H, W], normalised, to logits [n, classes].

    Weights are drawn from torch's generator: seed it first. ``blur_pool`` blurs before strided convolutions
    (:mod:`stoker.models.blur_pool`). ``image_size`` is the side of its images in pixels, for the models that must
    know it (the vision transformers and MaxViT). ``auxiliary`` adds the heads that GoogLeNet and Inception have in
    training, when they return a tuple (:func:`~stoker.models.training_loss`).

    Raises:
        ModelError: no such model (the message names the nearest), or it takes no ``drop_rate``, ``stochastic_depth``
            or ``image_size`` as given.
    """
    if name == _OWN:
        if stochastic_depth is not None:
            raise ModelError(f"model.stochastic_depth: {name} has none; leave it out")
        model: nn.Module = DigitsNet(classes, drop_rate or 0.0)
        return blur_before_strides(model) if blur_pool else model
    if name not in (known := model_names()):
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "any torchvision classification model will do"
        raise ModelError(f"model.name: no model is called {name!r}; {hint}")
    builder = models.get_model_builder(name)
    options: dict[str, object] = {"num_classes": classes}
    if drop_rate is not None:
        options["dropout"] = drop_rate
    if stochastic_depth is not None:
        options["stochastic_depth_prob"] = stochastic_depth
    if auxiliary_weight(name):
        options |= {"aux_logits": auxiliary, "init_weights": True}
    if image_size is not None and name.startswith("vit_"):
        options["image_size"] = image_size
    if image_size is not None and name.startswith("maxvit"):
        options["input_size"] = (image_size, image_size)
    try:
        model = builder(weights=None, **options)
    except TypeError as error:
        takes = ", ".join(inspect.signature(builder).parameters)
        key, what = ("drop_rate", "dropout") if "'dropout'" in str(error) else ("stochastic_depth", "such rate")
        raise ModelError(f"model.{key}: {name} takes no {what} ({takes}); leave it out") from None
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ModelError(f"data.image_size: {name} cannot be built for {image_size} pixels ({_line(error)})") from None
    return blur_before_strides(model) if blur_pool else model


def model_options(chosen: recipes.Model, image_size: int) -> dict[str, Any]:
    """What :func:`build_model` is asked for by a recipe's ``model`` section, for images of ``image_size`` pixels."""
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


def check_model(name: str, *, classes: int, micro_batch: int = 2, sizes: tuple[int, ...] = (), **options: Any) -> None:
    """Refuse what :func:`build_model` would refuse, without allocating the weights.

    With ``sizes`` (sides of square images, in pixels) also what a step of ``micro_batch`` images of each would refuse.

    Raises:
        ModelError: see :func:`build_model`; or images of a size do not go through the model.
    """
    model = model_on_meta(name, classes=classes, **options)
    for size in sizes:
        try:
            with torch.no_grad():
                model(torch.empty(max(1, micro_batch), 3, size, size, device="meta"))
        except (RuntimeError, ValueError, AssertionError) as error:
            raise ModelError(
                f"data.image_size: images of {size} pixels in micro-batches of {micro_batch} do not go through {name} "
                f"({_line(error)}); choose another size"
            ) from None


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load ``weights`` strictly, except that auxiliary heads may be there that ``model`` was built without.

    Raises:
        RuntimeError: they do not fit (torch's own message).
    """
    mine = model.state_dict().keys()
    model.load_state_dict({n: t for n, t in weights.items() if n in mine or not n.startswith(_AUXILIARY)})


class _OnMeta(TorchFunctionMode):
    """New memory is on the meta device; small tables that a model computes its shape from are real (the RegNets')."""

    _MEMORY = (torch.empty, torch.zeros, torch.ones, torch.randn, torch.rand)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in self._MEMORY and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
