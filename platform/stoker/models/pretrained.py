"""What a model begins with: a file of weights, read without trusting it, and fitted to the model name by name.

A safetensors file, or a state dict by ``torch.save`` as torchvision publishes them, which is read with
``weights_only``: no code in it is run. Of a safetensors file the shapes alone can be had, for a fraction of its bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor
from torchvision.models.vision_transformer import interpolate_embeddings

from stoker.errors import ModelError
from stoker.storage import Location
from stoker.storage.retry import BadBody

__all__ = ["Fit", "fit", "read_shapes", "read_weights", "resize_positions"]

Shape = tuple[int, ...]

_SAFETENSORS = ".safetensors"
_HEADER_MOST_BYTES = 100 * 2**20
"""the bound that safetensors itself sets"""
_WRAPPED = ("state_dict", "model")
_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.")
"""names in torchvision's files of DenseNets, which are older than its code"""
_POSITIONS = "encoder.pos_embedding"
_OPTIONAL = re.compile(r"(?:aux1|aux2|AuxLogits)\..*|.*\.num_batches_tracked")
"""heads that only training has, and counts that old files lack: what need not be in both"""


@dataclass(frozen=True)
class Fit:
    """Names of a model's tensors: those that a file has for it, and those that begin anew."""

    taken: frozenset[str]
    new: frozenset[str]
    resized: frozenset[str] = frozenset()
    """of ``taken``: position embeddings of another image size, to be interpolated"""


def read_weights(place: Location, sha256: str | None = None) -> dict[str, Tensor]:
    """The tensors in the file at ``place`` by name, on the CPU; with ``sha256`` (hexadecimal) checked against it.

    Raises:
        ModelError: there is no such file, or it does not hold named tensors alone.
        StorageError: it cannot be read, or is not what ``sha256`` says.
    """

    def check(data: bytes) -> None:
        if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
            raise BadBody(f"{len(data)} bytes came that are not what the model was published with")

    try:
        data = place.read(check)
    except FileNotFoundError:
        raise _missing(place) from None
    if place.name.endswith(_SAFETENSORS):
        try:
            return safetensors.torch.load(data)
        except safetensors.SafetensorError as error:
            raise ModelError(f"model.weights: {place} is not a safetensors file ({error}); write it again") from None
    return _state_dict(place, data)


def read_shapes(place: Location) -> dict[str, Shape]:
    """Names and shapes of the tensors in the file at ``place``; of a safetensors file only its header is read.

    Raises:
        ModelError, StorageError: see :func:`read_weights`.
    """
    if not place.name.endswith(_SAFETENSORS):
        return {name: tuple(tensor.shape) for name, tensor in read_weights(place).items()}
    try:
        length = int.from_bytes(place.read_range(0, 8), "little")
        if not 0 < length <= _HEADER_MOST_BYTES:
            raise ValueError
        header = json.loads(bytes(place.read_range(8, 8 + length)))
        return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    except FileNotFoundError:
        raise _missing(place) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(f"model.weights: {place} is not a safetensors file; write it again") from None


def fit(
    there: Mapping[str, Shape], wanted: Mapping[str, Shape], head: frozenset[str], *, keeps_head: bool, what: str
) -> Fit:
    """How the tensors of a file (``there``) fill a model (``wanted``), of which ``head`` may begin anew.

    ``what`` names both in errors, as ``"s3://… for a resnet50"``.

    Raises:
        ModelError: a tensor's shapes differ, or one is missing on either side; the message names it and the shapes.
    """
    resized = {_POSITIONS} & there.keys() if _are_resizable(there.get(_POSITIONS), wanted.get(_POSITIONS)) else set()
    new: set[str] = set()
    for name, shape in wanted.items():
        if name not in there:
            if name not in head and not _OPTIONAL.fullmatch(name):
                raise ModelError(f"model.weights: {what}: tensor {name} {_shown(shape)} is missing; {_ADVICE}")
            new.add(name)
        elif there[name] != shape and name not in head and name not in resized:
            shapes = f"{_shown(there[name])}, but {_shown(shape)} is needed"
            raise ModelError(f"model.weights: {what}: tensor {name} is {shapes}; {_ADVICE}")
    for name, shape in there.items():
        if name not in wanted and name not in head and not _OPTIONAL.fullmatch(name):
            raise ModelError(f"model.weights: {what}: the model has no tensor {name} {_shown(shape)}; {_ADVICE}")
    if not keeps_head or any(there.get(name) != wanted[name] for name in head if not _OPTIONAL.fullmatch(name)):
        new |= head
    return Fit(frozenset(wanted) - new, frozenset(new), frozenset(resized))


def resize_positions(weights: dict[str, Tensor], image_size: int, patch_size: int) -> dict[str, Tensor]:
    """``weights`` of a vision transformer with its position embeddings interpolated to another image size.

    Dosovitskiy and others, *An Image is Worth 16x16 Words* (ICLR 2021), section 3.2.
    """
    return dict(interpolate_embeddings(image_size, patch_size, dict(weights)))


_ADVICE = "give weights of this architecture, or change model.name and its options"


def _state_dict(place: Location, data: bytes) -> dict[str, Tensor]:
    try:
        found: Any = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no pickle make its interpreter fail in any way
        reason = " ".join(str(error).split())[:120]
        raise ModelError(
            f"model.weights: {place} does not load as tensors alone ({reason}); save a state dict, or safetensors"
        ) from None
    for key in _WRAPPED:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not all(isinstance(v, Tensor) for v in found.values()):
        raise ModelError(f"model.weights: {place} holds no state dict; save model.state_dict(), or safetensors")
    return {_DENSENET.sub(r"\1\2.", str(name).removeprefix("module.")): tensor for name, tensor in found.items()}


def _are_resizable(there: Shape | None, wanted: Shape | None) -> bool:
    return there is not None and wanted is not None and there != wanted and (there[0], there[2]) == (1, wanted[2])


def _shown(shape: Shape) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _missing(place: Location) -> ModelError:
    return ModelError(f"model.weights: no file at {place}; give a model version (name@3) or the URL of a weights file")
