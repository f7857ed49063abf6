"""Import weights that were trained elsewhere as a model version.

    read the file ─▶ our names ─▶ the architecture's tensors ─▶ golden predictions ─▶ (evaluate) ─▶ publish, checked

Nothing in the file is trusted: it is safetensors, or a state dict that is read without running code in it.
"""

from __future__ import annotations

import datetime
import hashlib
import platform
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
import torchvision
from torch import Tensor

import stoker
from stoker.errors import ModelError
from stoker.models import build_model, head_names, model_on_meta
from stoker.models.catalog import check_model_name, family_of
from stoker.models.known_weights import Origin, imagenet_classes, origin_of, packaged_file
from stoker.models.pretrained import match_tensors, resize_positions, weights_in, with_our_names
from stoker.predict.golden import GOLDEN, check_golden, golden_file
from stoker.predict.predictor import Predictor
from stoker.predict.targets import EvaluationTarget, evaluate_target, evaluation_recipe
from stoker.registry import ModelCard, ModelVersion, Preprocessing, Registry
from stoker.registry.registry import WEIGHTS
from stoker.storage import Location, locate

__all__ = ["Stated", "import_model"]

_MOST_CLASSES_BYTES = 1 << 24
_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Stated:
    """What the person who imports says of the weights; None: as their name tells.

    Sizes in pixels; ``mean`` and ``std`` of the channels R, G, B of pixels in 0 to 1. ``classes`` is ``imagenet`` or
    the path or URL of a file with a name a line, in the order of the model's outputs.
    """

    weights: str | None = None
    """path or URL of a file; None: those that a package carries"""
    classes: str | None = None
    image_size: int | None = None
    resize: int | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    licence: str | None = None
    source: str | None = None


def import_model(
    storage: Location,
    name: str,
    architecture: str,
    stated: Stated,
    *,
    data_url: str | None = None,
    split: str = "validation",
    alias: str | None = None,
) -> ModelVersion:
    """Publish weights of ``architecture`` as a new version of ``name``, and point ``alias`` at it.

    With ``data_url`` they are evaluated on a whole split of that data set first; its classes are the model's.

    Raises:
        ModelError: the weights do not fit, something that must be known is not stated, or the check failed.
        DatasetError: the data set does not exist or has other classes.
        StorageError: something cannot be read or written.
    """
    registry = Registry(storage)
    registry.check_name(name)
    if alias is not None:
        registry.check_alias_name(name, alias)
    check_model_name(architecture)
    place, origin = _found(architecture, stated)
    how = _preprocessing(place, origin, stated)
    licence = stated.licence or (origin.licence if origin else None)
    if not licence:
        raise ModelError(
            f"--licence: that of {place.name} is not known; state it, for example --licence Apache-2.0, or "
            "--licence unknown"
        )
    classes = _classes(place, origin, stated)
    weights, sha256 = _weights(architecture, place, len(classes), how.image_size)
    card = ModelCard(
        architecture=architecture,
        classes=classes,
        preprocessing=how,
        metrics=None,
        recipe={},
        run=None,
        dataset_url=None,
        dataset_fingerprint=None,
        licence=licence,
        source=stated.source or _source(origin) or f"file {place.name} (sha256 {sha256})",
        published=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        versions={
            "python": platform.python_version(),
            "stoker": stoker.__version__,
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        },
    )
    if data_url is not None:
        card = _evaluated(card, name, weights, data_url, split)
    golden = golden_file(Predictor(_Draft(name, card, weights)))
    files: dict[str, Any] = {WEIGHTS: safetensors.torch.save(weights), GOLDEN: golden}
    version = registry.publish(name, card, files, verify=lambda staged: check_golden(staged, Predictor(staged)))
    if alias is not None:
        registry.set_alias(name, alias, version.version)
    return version


@dataclass(frozen=True)
class _Draft:
    """A version before it is published, for :class:`Predictor`."""

    reference: str
    card: ModelCard
    tensors: dict[str, Tensor]

    @property
    def classes(self) -> tuple[str, ...]:
        return self.card.classes

    def weights(self) -> dict[str, Tensor]:
        return self.tensors


def _found(architecture: str, stated: Stated) -> tuple[Location, Origin | None]:
    if stated.weights is None:
        file, origin = packaged_file(architecture)
        return locate(file), origin
    place = locate(stated.weights, timeout_s=_TIMEOUT_S)
    return place, origin_of(architecture, place.name)


def _source(origin: Origin | None) -> str | None:
    if origin is None or origin.source is None:
        return None
    return f"{origin.source}; {origin.remark}" if origin.remark else origin.source


def _preprocessing(place: Location, origin: Origin | None, stated: Stated) -> Preprocessing:
    """What is stated, and for what is not, what is known.

    Raises:
        ModelError: neither is so, or sizes do not go together.
    """
    given = {key: getattr(stated, key) for key in ("image_size", "resize", "mean", "std")}
    if origin is not None:
        if stated.image_size is not None and stated.resize is None:
            given["resize"] = round(stated.image_size * origin.resize / origin.image_size)
        given = {key: getattr(origin, key) if value is None else value for key, value in given.items()}
    if given["image_size"] is not None and given["resize"] is None:
        given["resize"] = round(given["image_size"] / 0.875)
    missing = [f"--{key.replace('_', '-')}" for key, value in given.items() if value is None and key != "resize"]
    if missing:
        raise ModelError(
            f"{missing[0]}: how images were prepared for {place.name} is not known; state {', '.join(missing)}"
        )
    if not 0 < given["image_size"] <= given["resize"]:
        raise ModelError(
            f"--resize: {given['resize']} pixels is below --image-size ({given['image_size']}); the centre crop would "
            "be larger than the image"
        )
    if min(given["std"]) <= 0:
        raise ModelError(f"--std: {given['std']}: pixels are divided by it; give numbers above 0")
    return Preprocessing(**given)


def _classes(place: Location, origin: Origin | None, stated: Stated) -> tuple[str, ...]:
    which = stated.classes or (origin.classes if origin else None)
    if which is None:
        raise ModelError(
            f"--classes: those of {place.name} are not known; give imagenet, or a file with a name a line in the order "
            "of the outputs"
        )
    if which == "imagenet":
        return imagenet_classes()
    file = locate(which, timeout_s=_TIMEOUT_S)
    try:
        if file.size() > _MOST_CLASSES_BYTES:
            raise ModelError(f"--classes: {which} is larger than {_MOST_CLASSES_BYTES} bytes; give a name a line")
        names = tuple(line.strip() for line in file.read().decode().splitlines() if line.strip())
    except FileNotFoundError:
        raise ModelError(f"--classes: file {which} not found; give imagenet, or a file with a name a line") from None
    except UnicodeDecodeError:
        raise ModelError(f"--classes: {which} is not UTF-8 text; give a name a line") from None
    twice = next((name for number, name in enumerate(names) if name in names[:number]), None)
    if twice is not None:
        raise ModelError(f"--classes: {which} has {twice!r} twice; give each class a name of its own")
    return names


def _weights(architecture: str, place: Location, classes: int, image_size: int) -> tuple[dict[str, Tensor], str]:
    """The tensors of the architecture, filled from the file at ``place``, and the file's SHA-256.

    Raises:
        ModelError: they do not fit.
    """
    try:
        data = place.read()
    except FileNotFoundError:
        raise ModelError(f"--weights: file {place} not found; check the path or URL") from None
    digest, given = hashlib.sha256(data).hexdigest(), weights_in(data, place, field="--weights")
    options: dict[str, Any] = {"image_size": image_size}
    model = model_on_meta(architecture, classes=classes, **options)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    given = with_our_names(architecture, given, wanted)
    shapes = {name: tuple(tensor.shape) for name, tensor in given.items()}
    head = head_names(model, model_on_meta(architecture, classes=classes + 1, **options))
    positions = family_of(architecture).position_embedding
    what = f"--weights: {place} for a {architecture}"
    match = match_tensors(shapes, wanted, head, keeps_head=True, what=what, positions=positions)
    other = next((name for name in sorted(head) if name in shapes and shapes[name] != wanted[name]), None)
    if other is not None:
        raise ModelError(
            f"--classes: {classes} names, but the weights in {place} are of {shapes[other][0]} (tensor {other}); "
            "give as many names, in their order"
        )
    if missing := sorted(match.new & head):
        raise ModelError(f"{what}: tensor {missing[0]} of the head is missing; give weights with their head")
    projection = family_of(architecture).patch_projection
    if match.resized and projection is not None:
        given = resize_positions(given, image_size, int(given[projection].shape[-1]))
    built = build_model(architecture, classes=classes, **options)
    built.load_state_dict({name: given[name] for name in match.loaded}, strict=False)
    return {name: tensor.contiguous() for name, tensor in built.state_dict().items()}, digest


def _evaluated(card: ModelCard, name: str, weights: dict[str, Tensor], data_url: str, split: str) -> ModelCard:
    from stoker.dataset import read_manifest

    fingerprint = read_manifest(locate(data_url)).fingerprint
    target = EvaluationTarget(name, evaluation_recipe(card, data_url), weights, card.classes)
    _, result = evaluate_target(target, split=split)
    measured = {"metrics": result.metrics, "dataset_url": data_url, "dataset_fingerprint": fingerprint}
    return card.model_copy(update=measured)
