"""Architectures by name, what they lose in training, and what may be changed about them: blur, heads, frozen parts."""

from stoker.models.blur_pool import BlurredConv2d, blur_before_strides
from stoker.models.build import (
    build_model,
    check_model,
    load_weights,
    model_names,
    model_on_meta,
    model_options,
)
from stoker.models.digitsnet import DigitsNet
from stoker.models.freezing import FrozenBatchNorm, freeze
from stoker.models.layers import classes_of, head_names, layers_of
from stoker.models.losses import auxiliary_weight, logits_of, no_loss, training_loss

__all__ = [
    "BlurredConv2d",
    "DigitsNet",
    "FrozenBatchNorm",
    "auxiliary_weight",
    "blur_before_strides",
    "build_model",
    "check_model",
    "classes_of",
    "freeze",
    "head_names",
    "layers_of",
    "load_weights",
    "logits_of",
    "model_names",
    "model_on_meta",
    "model_options",
    "no_loss",
    "training_loss",
]
