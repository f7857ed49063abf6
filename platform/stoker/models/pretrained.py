"""Pretrained weights: a file, read without trusting it, whose tensors are matched with the model's by name.

The file is safetensors, or a state dict by ``torch.save`` as torchvision publishes them, which is read with
``weights_only``: no code in it is run. The shapes in a safetensors file can be read for a fraction of its bytes.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor
from torchvision.models.vision_transformer import interpolate_embeddings

from stoker.errors import ModelError
from stoker.models.catalog import AUXILIARY_HEADS, family_of
from stoker.storage import Location
from stoker.storage.retry import BadBody

__all__ = [
    "TensorMatch",
    "match_tensors",
    "read_shapes",
    "read_weights",
    "resize_positions",
    "weights_in",
    "with_our_names",
]

Shape = tuple[int, ...]
Value = TypeVar("Value")

_SAFETENSORS = ".safetensors"
_HEADER_MOST_BYTES = 100 * 2**20
"""the bound that safetensors itself sets"""
_WRAPPED = ("state_dict", "model")
_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.")
"""names in torchvision's files of DenseNets, which are older than its code"""
_VIT = re.compile(r"(encoder_layer_\d+\.mlp\.)(linear_[12])\.")
_VIT_NUMBERS = {"linear_1": "0", "linear_2": "3"}
"""the same of vision transformers"""
_COUNT_OF_AVERAGED = "n_averaged"
"""what torch.optim.swa_utils.AveragedModel has beside the model"""
_REFUSED_TYPE = re.compile(r"GLOBAL ([\w.]+)")
"""in torch's message about a pickle that holds more than tensors"""
_ADVICE = "give weights of this architecture, or change model.name and its options"


@dataclass(frozen=True)
class TensorMatch:
    """Names of a model's tensors: those that are loaded from a file, and those that keep their fresh values."""

    loaded: frozenset[str]
    new: frozenset[str]
    resized: frozenset[str] = frozenset()
    """of ``loaded``: position embeddings for another image size, to be interpolated"""


def read_weights(place: Location, sha256: str | None = None, *, field: str = "model.weights") -> dict[str, Tensor]:
    """Read the tensors in the file at ``place`` by name, on the CPU; ``sha256`` (hexadecimal) is checked if given.

    ``field`` is what errors call the file.

    Raises:
        ModelError: the file does not exist, or it holds something other than named tensors.
        StorageError: it cannot be read, or its checksum is not ``sha256``.
    """

    def check(data: bytes) -> None:
        if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
            raise BadBody(f"{len(data)} bytes were read whose checksum is not that of the published model")

    try:
        data = place.read(check)
    except FileNotFoundError:
        raise _missing(place, field) from None
    return weights_in(data, place, field=field)


def weights_in(data: bytes, place: Location, *, field: str) -> dict[str, Tensor]:
    """The tensors in ``data``, the content of the file at ``place``; see :func:`read_weights`."""
    if _without_query(place).endswith(_SAFETENSORS):
        try:
            return safetensors.torch.load(data)
        except (safetensors.SafetensorError, KeyError) as error:  # KeyError: a dtype that torch does not have
            raise ModelError(
                f"{field}: {_without_query(place)} is not a safetensors file ({error}); write it again"
            ) from None
    return _state_dict(place, data, field)


def read_shapes(place: Location) -> dict[str, Shape]:
    """Read names and shapes of the tensors in the file at ``place``; of a safetensors file only the header is read.

    Raises:
        ModelError, StorageError: see :func:`read_weights`.
    """
    if not _without_query(place).endswith(_SAFETENSORS):
        return {name: tuple(tensor.shape) for name, tensor in read_weights(place).items()}
    try:
        length = int.from_bytes(place.read_range(0, 8), "little")
        if not 0 < length <= _HEADER_MOST_BYTES:
            raise ValueError
        header = json.loads(bytes(place.read_range(8, 8 + length)))
        return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    except FileNotFoundError:
        raise _missing(place, "model.weights") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(f"model.weights: {_without_query(place)} is not a safetensors file; write it again") from None


def with_our_names(model: str, given: Mapping[str, Value], wanted: Collection[str]) -> dict[str, Value]:
    """``given``, by the names that the tensors of the architecture ``model`` have here, which are ``wanted``.

    A prefix that all names share (``module.``, ``model.``, ``_orig_mod.``) is taken off unless those of ``wanted``
    have it, and names of other implementations that the model's family knows are mapped to ours.
    """
    renamed = dict(given)
    while prefix := _shared_prefix(renamed):
        if any(name.startswith(prefix) for name in wanted):
            break
        renamed = {name.removeprefix(prefix): value for name, value in renamed.items()}
    if (foreign := family_of(model).foreign_names) is not None:
        module, _, function = foreign.partition(":")
        names = getattr(importlib.import_module(module), function)(model, renamed)
        for name, ours in names.items():
            if ours in renamed and ours != name:
                raise ModelError(f"tensor {ours!r} is in the file twice, also as {name!r}; give one of the two")
        renamed = {names.get(name, name): value for name, value in renamed.items()}
    return renamed


def match_tensors(
    given: Mapping[str, Shape],
    wanted: Mapping[str, Shape],
    head: frozenset[str],
    *,
    keeps_head: bool,
    what: str,
    positions: str | None = None,
) -> TensorMatch:
    """Match the tensors of a file (``given``) with those of a model (``wanted``), whose ``head`` may keep fresh values.

    ``what`` names both in errors, for example ``"model.weights: s3://… for a resnet50"``. ``positions`` is the name of
    a position embedding that may be interpolated.

    Raises:
        ModelError: a tensor's shapes differ, or it is missing on one side; the message has the first one's name and
            shapes, and how many there are.
    """
    resized = frozenset(
        {positions} if positions and _are_resizable(given.get(positions), wanted.get(positions)) else ()
    )
    new = {name for name in wanted if name not in given}
    faults = []
    for name, shape in wanted.items():
        if name not in given and name not in head and not _is_optional(name):
            faults.append(f"tensor {name} {_shown(shape)} is missing")
        elif name in given and given[name] != shape and name not in head and name not in resized:
            faults.append(f"tensor {name} is {_shown(given[name])}, but {_shown(shape)} is needed")
    for name, shape in given.items():
        if name not in wanted and name not in head and not _is_optional(name):
            faults.append(f"the model has no tensor {name} {_shown(shape)}")
    if faults:
        count = f" (the first of {len(faults)} that differ, of {len(wanted)})" if len(faults) > 1 else ""
        raise ModelError(f"{what}: {faults[0]}{count}; {_ADVICE}")
    if not keeps_head or any(given.get(name) != wanted[name] for name in head if not _is_optional(name)):
        new |= head
    return TensorMatch(frozenset(wanted) - new, frozenset(new), resized)


def resize_positions(weights: dict[str, Tensor], image_size: int, patch_size: int) -> dict[str, Tensor]:
    """Interpolate the position embeddings in a vision transformer's ``weights`` to another image size.

    Both sizes are sides in pixels. Returns a new mapping.

    Dosovitskiy and others, *An Image is Worth 16x16 Words* (ICLR 2021), section 3.2.
    """
    return dict(interpolate_embeddings(image_size, patch_size, dict(weights)))


def _state_dict(place: Location, data: bytes, field: str) -> dict[str, Tensor]:
    try:
        loaded: Any = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are not a pickle make its interpreter fail in any way
        found = _REFUSED_TYPE.search(str(error))
        reason = f"it holds a {found[1]}" if found else f"not a file of torch.save: {type(error).__name__}"
        raise ModelError(
            f"{field}: {_without_query(place)} does not load with weights_only ({reason}); save a state dict, or "
            "safetensors"
        ) from None
    for key in _WRAPPED:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if isinstance(loaded, Mapping):
        loaded = {name: value for name, value in loaded.items() if name != _COUNT_OF_AVERAGED}
    if not isinstance(loaded, Mapping) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise ModelError(
            f"{field}: {_without_query(place)} does not hold a state dict; save model.state_dict(), or safetensors"
        )
    return {_current_name(str(name)): tensor for name, tensor in loaded.items()}


def _current_name(name: str) -> str:
    """The name that a tensor of an old file of torchvision's has in its code of today."""
    return _VIT.sub(lambda found: f"{found[1]}{_VIT_NUMBERS[found[2]]}.", _DENSENET.sub(r"\1\2.", name))


def _shared_prefix(names: Collection[str]) -> str:
    """The first part of every name, with its dot; empty if they differ, or if one has no other part."""
    starts = {name.partition(".")[0] if "." in name else "" for name in names}
    return f"{starts.pop()}." if len(starts) == 1 and "" not in starts else ""


def _is_optional(name: str) -> bool:
    """Whether ``name`` may be on one side only: auxiliary heads, and counts that old files lack."""
    return name.startswith(AUXILIARY_HEADS) or name.endswith(".num_batches_tracked")


def _are_resizable(given: Shape | None, wanted: Shape | None) -> bool:
    """Whether both are [1, 1 + patches, width], of one width, with the patches of a square."""
    if given is None or wanted is None or given == wanted or len(given) != len(wanted):
        return False
    patches = given[1] - 1
    return (given[0], given[2]) == (1, wanted[2]) and patches > 0 and math.isqrt(patches) ** 2 == patches


def _shown(shape: Shape) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _without_query(place: Location) -> str:
    """The URL of ``place`` without what a signed one has after it."""
    return place.url.partition("?")[0]


def _missing(place: Location, field: str) -> ModelError:
    return ModelError(
        f"{field}: file {_without_query(place)} not found; give a model version (name@3) or the URL of a weights file"
    )
