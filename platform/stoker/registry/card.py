"""``model.json``: the description of a model version and the checksums of its files."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from stoker.errors import ModelError
from stoker.runs.records import Metrics

__all__ = ["FORMAT", "FORMAT_VERSION", "ModelCard", "Preprocessing", "StoredFile", "card_text", "parse_card"]

FORMAT = "stoker-model"
FORMAT_VERSION = (2, 0)
"""(major, minor): a reader rejects another major version and reads any minor one, whose new fields it keeps.

Since 2.0 a version may have no run, no metrics and no data set: its weights were trained elsewhere. Versions of runs
are written as 1.1, so that an endpoint of before can read them.
"""
RUN_FORMAT_VERSION = (1, 1)
_MAJORS = (1, 2)
_FRAME = frozenset({"format", "version", "name", "number", "files"})
"""what ``model.json`` has around the card"""


class _Part(BaseModel):
    """Fields of a later minor version are kept as they are, and written again where the part is."""

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())


class StoredFile(_Part):
    """Size in ``bytes`` and ``sha256`` (64 hexadecimal digits) of one file of a version."""

    bytes: int
    sha256: str


class Preprocessing(_Part):
    """How an image becomes the model's input: shorter side to ``resize``, centre crop, normalize; sizes in pixels."""

    image_size: int
    resize: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class ModelCard(_Part):
    """The content of ``model.json``, without the list of files."""

    architecture: str
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    metrics: Metrics | None
    """on every sample of the split that it was evaluated on; None: not measured here"""
    recipe: dict[str, Any]
    """of the run; empty if the weights were trained elsewhere"""
    run: str | None
    """None: the weights were trained elsewhere (``licence``, ``source``)"""
    dataset_url: str | None
    """that it was evaluated on"""
    dataset_fingerprint: str | None
    dataset_split: str | None = None
    """of it; None: the validation split of the recipe"""
    licence: str | None = None
    """of weights that were trained elsewhere, for example Apache-2.0"""
    source: str | None = None
    """who trained them and where they are from, in words or as a URL"""
    parent: str | None = None
    """the version that this one was fine-tuned from, as ``digits@2``"""
    published: str
    """time of publication, ISO 8601 in UTC"""
    versions: dict[str, str]
    """of Python, torch, torchvision, Ray and stoker when it was trained"""

    @model_validator(mode="before")
    @classmethod
    def _without_frame(cls, content: Any) -> Any:
        return {k: v for k, v in content.items() if k not in _FRAME} if isinstance(content, dict) else content

    @property
    def format_version(self) -> tuple[int, int]:
        """The oldest format that can say what this card says."""
        return FORMAT_VERSION if self.run is None else RUN_FORMAT_VERSION


def card_text(name: str, version: int, card: ModelCard, files: dict[str, StoredFile]) -> bytes:
    """The content of ``model.json`` of the version ``name@version``."""
    content = {
        "format": FORMAT,
        "version": list(card.format_version),
        "name": name,
        "number": version,
        **card.model_dump(mode="json"),
        "files": {file: entry.model_dump() for file, entry in files.items()},
    }
    return json.dumps(content, indent=1).encode()


def parse_card(text: bytes, where: object, name: str, version: int) -> tuple[ModelCard, dict[str, StoredFile]]:
    """The card and the files of ``name@version`` in ``text``, which was read at ``where``.

    Raises:
        ModelError: damaged, of another format or major version, or of another model or number.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise ModelError(f"{where}: damaged, not valid JSON; publish the run again") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ModelError(f"{where}: not a stoker model; check the storage URL")
    try:
        major = content["version"][0] + 0  # TypeError unless it is a number
        if major > _MAJORS[-1]:
            raise ModelError(
                f"{where}: format version {content['version']} is newer than this stoker reads; upgrade stoker"
            )
        if major not in _MAJORS:
            raise ModelError(f"{where}: format version {content['version']} is unknown; publish the run again")
        card = ModelCard.model_validate(content)
        files = {file: StoredFile.model_validate(entry) for file, entry in content["files"].items()}
        found = content["name"], content["number"]
    except (ValidationError, KeyError, AttributeError, TypeError, IndexError) as error:
        raise ModelError(f"{where}: damaged ({type(error).__name__}); publish the run again") from None
    if found != (name, version):
        raise ModelError(
            f"{where}: the card of {found[0]}@{found[1]} in the place of {name}@{version}'s; versions are not "
            f"copied or renamed, publish the run as {name}"
        )
    return card, files
