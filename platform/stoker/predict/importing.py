"""Import weights that were trained elsewhere as a model version.

    read the file ─▶ our names ─▶ the architecture's tensors ─▶ golden predictions ─▶ (evaluate) ─▶ publish, checked

Nothing in the file is trusted: it is safetensors, or a state dict that is read without running code in it.
"""

from __future__ import annotations

import datetime
import hashlib
import platform
from collections import Counter
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
import torchvision
from torch import Tensor

import stoker
from stoker.errors import ModelError
from stoker.models import build_model, check_images, head_names, model_on_meta
from stoker.models.build import as_state_dict
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
_COUNT = "num_batches_tracked"
"""of a batch norm, an integer"""


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
    licence = _line("--licence", stated.licence) or (origin.licence if origin else None)
    if not licence:
        raise ModelError(
            f"--licence: that of {_file(place)} is not known; state it, for example --licence Apache-2.0, or "
            "--licence unknown"
        )
    source = _line("--source", stated.source) or (origin.source if origin else None) or f"file {_file(place)}"
    classes = _classes(place, origin, stated)
    _check_size(architecture, len(classes), how.image_size)
    weights, sha256 = _weights(architecture, place, len(classes), how.image_size)
    if origin is not None and not sha256.startswith(origin.sha256):
        raise ModelError(
            f"--weights: {_file(place)} has the name of a published file but another content (its SHA-256 begins with "
            f"{sha256[:8]}); give that file, or rename this one and state what is known of it"
        )
    remark = f"; {origin.remark}" if origin and origin.remark else ""
    card = ModelCard(
        architecture=architecture,
        classes=classes,
        preprocessing=how,
        metrics=None,
        recipe={},
        run=None,
        dataset_url=None,
        dataset_fingerprint=None,
        dataset_split=None,
        licence=licence,
        source=f"{source} (sha256 {sha256}){remark}",
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
    return registry.publish(
        name, card, files, verify=lambda staged: check_golden(staged, Predictor(staged)), alias=alias
    )


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


def _file(place: Location) -> str:
    """The name of the file at ``place``, without what a signed URL has after it."""
    return place.name.partition("?")[0]


def _line(option: str, text: str | None) -> str | None:
    """``text`` without the spaces around it.

    Raises:
        ModelError: it is more than one line, or empty.
    """
    if text is None:
        return None
    if not text.strip() or not text.strip().isprintable():
        raise ModelError(f"{option}: {text!r} is not a line of text; leave it out, or write one")
    return text.strip()


def _check_size(architecture: str, classes: int, image_size: int) -> None:
    try:
        model = model_on_meta(architecture, classes=classes, image_size=image_size).eval()
        check_images(model, architecture, sides=[image_size], micro=1, last=1)
    except ModelError as error:
        raise ModelError(f"--image-size: {str(error).partition(': ')[2]}") from None


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
            f"{missing[0]}: how images were prepared for {_file(place)} is not known; state {', '.join(missing)}"
        )
    if given["image_size"] < 1:
        raise ModelError(f"--image-size: {given['image_size']} is not a number of pixels; give 1 or more")
    if given["image_size"] > given["resize"]:
        raise ModelError(
            f"--resize: {given['resize']} pixels is below --image-size ({given['image_size']}); the centre crop would "
            "be larger than the image"
        )
    for option, low in (("mean", 0.0), ("std", 1e-6)):
        if not all(low <= value <= 1 for value in given[option]):
            raise ModelError(
                f"--{option}: {given[option]}: pixels are numbers from 0 to 1 here; give numbers in that range, those "
                "of pixels from 0 to 255 divided by 255"
            )
    return Preprocessing(**given)


def _classes(place: Location, origin: Origin | None, stated: Stated) -> tuple[str, ...]:
    which = stated.classes or (origin.classes if origin else None)
    if which is None:
        raise ModelError(
            f"--classes: those of {_file(place)} are not known; give imagenet, or a file with a name a line in the "
            "order of the outputs"
        )
    if which == "imagenet":
        return imagenet_classes()
    file = locate(which, timeout_s=_TIMEOUT_S)
    try:
        if file.size() > _MOST_CLASSES_BYTES:
            raise ModelError(f"--classes: {which} is larger than {_MOST_CLASSES_BYTES} bytes; give a name a line")
        names = tuple(line.strip() for line in file.read().decode("utf-8-sig").split("\n") if line.strip())
    except FileNotFoundError:
        raise ModelError(f"--classes: file {which} not found; give imagenet, or a file with a name a line") from None
    except UnicodeDecodeError:
        raise ModelError(f"--classes: {which} is not UTF-8 text; give a name a line") from None
    if odd := next((name for name in names if not name.isprintable()), None):
        raise ModelError(f"--classes: {which}: {odd!r} holds characters that cannot be printed; give a name a line")
    name, count = max(Counter(names).items(), key=lambda item: item[1], default=("", 1))
    if count > 1:
        raise ModelError(f"--classes: {which} has {name!r} twice; give each class a name of its own")
    return names


def _weights(architecture: str, place: Location, classes: int, image_size: int) -> tuple[dict[str, Tensor], str]:
    """The tensors of the architecture, filled from the file at ``place``, and the file's SHA-256.

    Raises:
        ModelError: they do not fit.
    """
    try:
        data = place.read()
    except FileNotFoundError:
        raise ModelError(f"--weights: file {_file(place)} not found; check the path or URL") from None
    digest, given = hashlib.sha256(data).hexdigest(), weights_in(data, place, field="--weights")
    options: dict[str, Any] = {"image_size": image_size}
    model = model_on_meta(architecture, classes=classes, **options)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    try:
        given = with_our_names(architecture, given, wanted)
    except ModelError as error:
        raise ModelError(f"--weights: {_file(place)}: {error}") from None
    shapes = {name: tuple(tensor.shape) for name, tensor in given.items()}
    head = head_names(model, model_on_meta(architecture, classes=classes + 1, **options))
    positions = family_of(architecture).position_embedding
    what = f"--weights: {_file(place)} for a {architecture}"
    match = match_tensors(shapes, wanted, head, keeps_head=True, what=what, positions=positions)
    other = next((name for name in sorted(head) if name in shapes and shapes[name] != wanted[name]), None)
    if other is not None:
        if not shapes[other] or shapes[other][1:] != wanted[other][1:]:
            raise ModelError(f"{what}: tensor {other} is {list(shapes[other])}, but {list(wanted[other])} is needed")
        raise ModelError(
            f"--classes: {classes} names, but the weights in {_file(place)} are of {shapes[other][0]} (tensor {other})"
            "; give as many names, in their order"
        )
    if missing := sorted(match.new & head):
        raise ModelError(f"{what}: tensor {missing[0]} of the head is missing; give weights with their head")
    _check_values(what, {name: given[name] for name in match.loaded})
    projection = family_of(architecture).patch_projection
    if match.resized and projection is not None:
        given = resize_positions(given, image_size, int(given[projection].shape[-1]))
    built = build_model(architecture, classes=classes, **options)
    built.load_state_dict(as_state_dict(built, {name: given[name] for name in match.loaded}), strict=False)
    return {name: tensor.contiguous() for name, tensor in built.state_dict().items()}, digest


def _check_values(what: str, tensors: dict[str, Tensor]) -> None:
    """Refuse tensors that a model cannot compute with: sparse or quantized ones, of other types, not finite."""
    for name, tensor in sorted(tensors.items()):
        if name.endswith(_COUNT):
            continue
        kind = str(tensor.dtype).removeprefix("torch.")
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta or not tensor.is_floating_point():
            raise ModelError(f"{what}: tensor {name} is {kind}, {tensor.layout}; save it as floating-point numbers")
        if not bool(tensor.float().isfinite().all()):
            count = int((~tensor.float().isfinite()).sum())
            raise ModelError(f"{what}: tensor {name} holds {count} numbers that are not finite; give other weights")


def _evaluated(card: ModelCard, name: str, weights: dict[str, Tensor], data_url: str, split: str) -> ModelCard:
    from stoker.dataset import read_manifest

    data_url = locate(data_url).url
    fingerprint = read_manifest(locate(data_url)).fingerprint
    target = EvaluationTarget(name, evaluation_recipe(card, data_url), weights, card.classes)
    _, result = evaluate_target(target, split=split)
    measured = {
        "metrics": result.metrics,
        "dataset_url": data_url,
        "dataset_fingerprint": fingerprint,
        "dataset_split": split,
    }
    return card.model_copy(update=measured)
