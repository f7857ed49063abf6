"""``model.json``: the description of a model version and the checksums of its files."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from stoker.runs.records import Metrics

__all__ = ["FORMAT", "FORMAT_VERSION", "ModelCard", "Preprocessing", "StoredFile"]

FORMAT = "stoker-model"
FORMAT_VERSION = (2, 0)
"""(major, minor): a reader rejects a newer major version and reads any minor one.

Since 2.0 a version may have no run, no metrics and no data set: its weights were trained elsewhere. Versions of runs
are written as 1.1, so that an endpoint of before can read them.
"""
RUN_FORMAT_VERSION = (1, 1)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


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

    @property
    def format_version(self) -> tuple[int, int]:
        """The oldest format that can say what this card says."""
        return FORMAT_VERSION if self.run is None else RUN_FORMAT_VERSION
