"""Architectures by name, their losses, and what can be changed about them: blur, heads, frozen parts.

Names are imported when they are used: a program that only reads the catalog does not wait for torch.
"""

from typing import TYPE_CHECKING

from stoker.lazy import lazy_names

if TYPE_CHECKING:
    from stoker.models.blur_pool import BlurredConv2d, blur_before_strides
    from stoker.models.build import build_model, check_images, load_weights, model_on_meta, model_options
    from stoker.models.catalog import Family, family_of, known_models
    from stoker.models.digitsnet import DigitsNet
    from stoker.models.freezing import FrozenBatchNorm, freeze
    from stoker.models.layers import classes_of, head_names, layers_of
    from stoker.models.losses import auxiliary_weight, logits_of, no_loss, training_loss

__all__ = [
    "BlurredConv2d",
    "DigitsNet",
    "Family",
    "FrozenBatchNorm",
    "auxiliary_weight",
    "blur_before_strides",
    "build_model",
    "check_images",
    "classes_of",
    "family_of",
    "freeze",
    "head_names",
    "known_models",
    "layers_of",
    "load_weights",
    "logits_of",
    "model_on_meta",
    "model_options",
    "no_loss",
    "training_loss",
]

_HOMES = {
    "BlurredConv2d": "blur_pool",
    "DigitsNet": "digitsnet",
    "Family": "catalog",
    "FrozenBatchNorm": "freezing",
    "auxiliary_weight": "losses",
    "blur_before_strides": "blur_pool",
    "build_model": "build",
    "check_images": "build",
    "classes_of": "layers",
    "family_of": "catalog",
    "freeze": "freezing",
    "head_names": "layers",
    "known_models": "catalog",
    "layers_of": "layers",
    "load_weights": "build",
    "logits_of": "losses",
    "model_on_meta": "build",
    "model_options": "build",
    "no_loss": "losses",
    "training_loss": "losses",
}

__getattr__ = lazy_names(__name__, _HOMES)
