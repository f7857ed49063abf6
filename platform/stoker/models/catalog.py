"""Families of models: one row for each, importable without torch and torchvision.

The driver and the controller read it without waiting for torch, whose import takes seconds of processor time. A new
family is a file with its architecture (if it is ours), a row here and a test; torchvision's families need a row only
for what differs from :data:`DEFAULT`. tests/models/test_catalog.py builds a model of each row and checks its claims.
"""

from __future__ import annotations

import difflib
import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from stoker.errors import ModelError

__all__ = [
    "AUXILIARY_HEADS",
    "CONTAINERS",
    "DEFAULT",
    "EMBEDDINGS",
    "FAMILIES",
    "Family",
    "check_model_name",
    "family_of",
    "known_models",
]


@dataclass(frozen=True)
class Family:
    """What is known about the models whose names start with one of ``prefixes``; ours are named by them in full.

    A builder takes the keyword arguments of torchvision's: ``num_classes``, and where a row says so ``dropout``,
    ``stochastic_depth_prob``, ``aux_logits`` and what ``image_options`` returns.
    """

    prefixes: tuple[str, ...]
    builder: str | None = None
    """``module:name`` of an architecture of ours, imported when a model is built (without a name: the model's); None:
    torchvision's, by its name"""
    least_side: int | None = None
    """square images of any side from this many pixels on go through; None: only a forward pass can tell"""
    has_dropout: bool = False
    has_stochastic_depth: bool = False
    ignored: tuple[str, ...] = ()
    """``drop_rate`` or ``stochastic_depth``: accepted without effect, as torchvision's builder does, because stored
    recipes may have it"""
    image_options: Callable[[int], dict[str, object]] | None = None
    """keyword arguments that tell the builder the side of the images in pixels; None: it need not know it"""
    auxiliary_heads: tuple[str, ...] = ()
    """prefixes of the parameters of heads that exist in training only"""
    auxiliary_weight: float = 0.0
    """weight of each auxiliary head's loss; the main head's is 1"""
    embeddings: tuple[str, ...] = ()
    """last names of embeddings: more than one dimension, but not decayed with ``optimizer.decay_embeddings: false``"""
    position_embedding: str | None = None
    """tensor [1, 1 + patches, width] that can be interpolated to another image size"""
    patch_projection: str | None = None
    """tensor [width, 3, patch, patch] whose last dimension is the patch's side in pixels"""
    nondeterministic_on_gpu: str | None = None
    """the operation whose gradient has no deterministic algorithm on a GPU; None: none is known"""
    nondeterministic_heads_on_gpu: str | None = None
    """the same, of the auxiliary heads alone"""
    foreign_names: str | None = None
    """``module:name`` of a function that maps names of tensors in files of other implementations to ours"""
    containers: tuple[str, ...] = ()
    """qualified names of module classes that only list blocks: each child is a layer of its own"""


FAMILIES = (
    Family(("digitsnet",), builder="stoker.models.digitsnet:DigitsNet", least_side=32, has_dropout=True),
    Family(("alexnet", "vgg"), has_dropout=True, nondeterministic_on_gpu="AdaptiveAvgPool2d"),
    Family(("mnasnet", "squeezenet"), has_dropout=True),
    Family(("convnext",), has_stochastic_depth=True, ignored=("drop_rate",)),
    Family(("efficientnet_b", "efficientnet_v2"), least_side=32, has_dropout=True, has_stochastic_depth=True),
    Family(
        tuple(f"efficientnet_lite{size}" for size in range(5)),
        builder="stoker.models.efficientnet_lite:",
        least_side=32,
        has_dropout=True,
        has_stochastic_depth=True,
        foreign_names="stoker.models.efficientnet_lite:our_names",
    ),
    Family(("mobilenet_v2",), least_side=32, has_dropout=True),
    Family(("mobilenet_v3",), least_side=32, has_dropout=True, ignored=("stochastic_depth",)),
    Family(("regnet", "resnet", "resnext", "shufflenet", "wide_resnet"), least_side=32),
    # Szegedy and others, Going Deeper with Convolutions (CVPR 2015), section 5: 0.3 for each of two heads.
    Family(
        ("googlenet",),
        has_dropout=True,
        auxiliary_heads=("aux1.", "aux2."),
        auxiliary_weight=0.3,
        nondeterministic_heads_on_gpu="AdaptiveAvgPool2d",
    ),
    # The weight in its authors' published training code (TensorFlow models, slim); Szegedy and others, Rethinking the
    # Inception Architecture (CVPR 2016), section 4, give none.
    Family(("inception_v3",), has_dropout=True, auxiliary_heads=("AuxLogits.",), auxiliary_weight=0.4),
    Family(
        ("maxvit",),
        image_options=lambda side: {"input_size": (side, side)},
        embeddings=("relative_position_bias_table",),
    ),
    Family(("swin_",), has_dropout=True, embeddings=("relative_position_bias_table",)),
    Family(
        ("vit_",),
        has_dropout=True,
        image_options=lambda side: {"image_size": side},
        embeddings=("class_token", "pos_embedding"),
        position_embedding="encoder.pos_embedding",
        patch_projection="conv_proj.weight",
        containers=("torchvision.models.vision_transformer.Encoder",),
    ),
)

DEFAULT = Family(("",))
"""torchvision's families without a row: no option but the number of classes"""

AUXILIARY_HEADS = tuple(prefix for family in FAMILIES for prefix in family.auxiliary_heads)
EMBEDDINGS = frozenset(name for family in FAMILIES for name in family.embeddings)
CONTAINERS = frozenset(name for family in FAMILIES for name in family.containers)

_OURS = frozenset(name for family in FAMILIES if family.builder for name in family.prefixes)
_BUILDER = re.compile(r"^@register_model\((?:name=\"(\w+)\")?\)\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)


def family_of(name: str) -> Family:
    """Return the row of the model ``name``, or :data:`DEFAULT` without one."""
    return next((family for family in FAMILIES if name.startswith(family.prefixes)), DEFAULT)


@cache
def known_models() -> frozenset[str]:
    """Return the names of torchvision's classification models and of ours; only ours without torchvision.

    torchvision registers each builder with a decorator; the names are read from its source, without importing it.
    """
    package = importlib.util.find_spec("torchvision")
    folders = (package.submodule_search_locations or []) if package else []
    files = [file for folder in folders for file in (Path(folder) / "models").glob("*.py")]
    matches = (match for file in files for match in _BUILDER.finditer(file.read_text(encoding="utf-8")))
    return _OURS | {match[1] or match[2] for match in matches}


def check_model_name(name: str) -> None:
    """Refuse a name that :func:`~stoker.models.build_model` does not know.

    Raises:
        ModelError: the name is unknown; the message has the nearest known names.
    """
    known = known_models()
    if name not in known:
        near = difflib.get_close_matches(name, sorted(known), n=3)
        ours = ", ".join(sorted(_OURS))
        hint = (
            f"did you mean {' or '.join(near)}?"
            if near
            else f"give a torchvision classification model, or one of {ours}"
        )
        raise ModelError(f"model.name: unknown model {name!r}; {hint}")
