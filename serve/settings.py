"""Settings of the application: ``args`` in a Serve YAML."""

from __future__ import annotations

import os
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

__all__ = ["Batching", "Deployed", "Limits", "Settings"]

INGRESS = "http"
"""name of the deployment that answers HTTP; every other deployment has the name of its model"""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Limits(_Strict):
    """Limits of one request; a request beyond them is answered with 413."""

    body_bytes: int = Field(16_000_000, ge=1, description="bytes of the whole body")
    pixels: int = Field(
        50_000_000,
        ge=1,
        description="pixels of all images of a request together, from their headers; an image has 178,956,970 at most",
    )
    images: int = Field(32, ge=1, description="images in one request")


class Batching(_Strict):
    """Dynamic batching: images of several requests go through the model in one forward pass."""

    images: int = Field(32, ge=1, description="largest batch")
    wait_ms: float = Field(
        4.0, ge=0, description="how long, in milliseconds, the first image of a batch waits for others"
    )


class Deployed(_Strict):
    """A served model: its name, the reference that was deployed, and the version that it resolved to."""

    name: str
    reference: str
    version: str

    @property
    def names(self) -> set[str]:
        """Names that a request may use: ``digits``, ``digits@production``, ``digits@3``."""
        return {self.name, self.reference, self.version}


class Settings(_Strict):
    """All settings of the application itself; replicas and queues are set under ``deployments``."""

    models: list[str] = Field(min_length=1, description="references: digits@production, digits@3, digits (newest)")
    storage: str = Field(
        default_factory=lambda: os.environ.get("STOKER_STORAGE", ""),
        validate_default=True,
        description="URL below which models/ is; default: STOKER_STORAGE",
    )
    versions: dict[str, str] = Field(
        default_factory=dict,
        description="version of each reference; set by stoker_serve.deploy, so that a moved alias changes the config",
    )
    authentication: Literal["keys", "none"] = Field(
        "keys", description="none: no key is needed, anybody who reaches the port may predict"
    )
    top: int = Field(5, ge=1, description="classes to return for each image, unless the request has ?top=")
    limits: Limits = Limits.model_validate({})
    batching: Batching = Batching.model_validate({})

    @field_validator("storage")
    @classmethod
    def _storage_is_set(cls, storage: str) -> str:
        if not storage:
            raise ValueError("no storage URL; set storage, or STOKER_STORAGE in the environment")
        return storage

    @field_validator("models")
    @classmethod
    def _names_are_unique(cls, models: list[str]) -> list[str]:
        names = [reference.partition("@")[0] for reference in models]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"model {name!r} is listed twice; list one version of it")
            if name == INGRESS:
                raise ValueError(
                    f"model name {INGRESS!r} is reserved for the deployment that answers HTTP; publish it under another"
                )
        return models

    def deployed(self) -> list[Deployed]:
        """The models with the versions of their references, looked up in the registry unless ``versions`` has them.

        Raises:
            ModelError: a model, version or alias is unknown.
            StorageError: the registry cannot be read.
        """
        return [
            Deployed(name=r.partition("@")[0], reference=r, version=self.versions.get(r) or self._look_up(r))
            for r in self.models
        ]

    def _look_up(self, reference: str) -> str:
        from stoker.registry import Registry  # imports torch, which takes seconds
        from stoker.storage import locate

        return Registry(locate(self.storage, timeout_s=10)).resolve(reference).reference
