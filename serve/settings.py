"""What the application's ``args`` in a Serve YAML may say."""

from __future__ import annotations

import os
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

__all__ = ["Batching", "Deployed", "Limits", "Settings"]

INGRESS = "http"
"""the name of the deployment that answers HTTP; every other deployment is called after its model"""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Limits(_Strict):
    """The most that one request may ask for; beyond it the answer is 413."""

    body_bytes: int = Field(16_000_000, ge=1, description="length of the whole body")
    pixels: int = Field(50_000_000, ge=1, description="pixels of all images of a request together, before decoding")
    images: int = Field(32, ge=1, description="images of one request")


class Batching(_Strict):
    """How images of several requests share a forward pass."""

    images: int = Field(32, ge=1, description="images of one forward pass")
    wait_ms: float = Field(4.0, ge=0, description="how long the first image of a batch waits for others")


class Deployed(_Strict):
    """One model behind the endpoint: its name, the reference that was asked for, and the version that it meant."""

    name: str
    reference: str
    version: str

    @property
    def names(self) -> set[str]:
        """What a request may call it: ``digits``, ``digits@production``, ``digits@3``."""
        return {self.name, self.reference, self.version}


class Settings(_Strict):
    """Everything that can be set about the application itself; replicas and queues are set under ``deployments``."""

    models: list[str] = Field(min_length=1, description="references: digits@production, digits@3, digits (newest)")
    storage: str = Field(
        default_factory=lambda: os.environ.get("STOKER_STORAGE", ""),
        validate_default=True,
        description="URL below which models/ lies; default: STOKER_STORAGE",
    )
    versions: dict[str, str] = Field(
        default_factory=dict,
        description="what each reference means; stoker_serve.deploy looks it up, so that a moved alias is a change",
    )
    authentication: Literal["keys", "none"] = Field("keys", description="none: anybody who reaches the port may ask")
    top: int = Field(5, ge=1, description="classes of an answer, unless the request says ?top=")
    limits: Limits = Limits.model_validate({})
    batching: Batching = Batching.model_validate({})

    @field_validator("storage")
    @classmethod
    def _must_be_known(cls, storage: str) -> str:
        if not storage:
            raise ValueError("where the models lie is not known; set storage, or STOKER_STORAGE in the environment")
        return storage

    @field_validator("models")
    @classmethod
    def _must_differ(cls, models: list[str]) -> list[str]:
        names = [reference.partition("@")[0] for reference in models]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"model {name!r} is there twice; an endpoint serves one version of it at a time")
            if name == INGRESS:
                raise ValueError(f"a model called {INGRESS!r} cannot be served: so is the deployment in front of it")
        return models

    def deployed(self) -> list[Deployed]:
        """The models and the versions that their references mean, looked up in the registry where not said.

        Raises:
            ModelError: there is no such model, version or alias.
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
