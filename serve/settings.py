"""Settings of the applications: ``args`` in a Serve YAML."""

from __future__ import annotations

import os
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

__all__ = [
    "FRONT",
    "PREFIX",
    "Batching",
    "FrontSettings",
    "Limits",
    "ModelSettings",
    "least_ongoing",
    "least_shutdown_s",
]

FRONT = "front"
"""name of the front's application"""
PREFIX = "/v1/models/"
"""the route prefix of a model's application is this and the model's name"""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Limits(_Strict):
    """Limits of one request (beyond them: 408, 413) and of all that a replica holds (beyond them: 503)."""

    body_bytes: int = Field(16_000_000, ge=1, description="bytes of the whole body")
    pixels: int = Field(
        50_000_000,
        ge=1,
        description="pixels of all images of a request together, from their headers; an image has 178,956,970 at most",
    )
    images: int = Field(32, ge=1, description="images in one request")
    queue_images: int = Field(256, ge=1, description="images that a replica has accepted and not answered")
    queue_s: float = Field(
        1.0,
        gt=0,
        description="seconds that an accepted image would wait for those before it; an idle replica accepts any",
    )
    held_bytes: int = Field(128_000_000, ge=1, description="bytes of all bodies that a replica holds or reads")
    read_s: float = Field(10.0, gt=0, description="seconds in which a body arrives, and 1 more for each 100 kB")
    answer_s: float = Field(30.0, gt=0, description="seconds after which an accepted request is given up: 504")

    @model_validator(mode="after")
    def _a_request_fits(self) -> Limits:
        if self.queue_images < self.images:
            raise ValueError(
                f"queue_images ({self.queue_images}) is below images ({self.images}): a full request could never be "
                "accepted; raise queue_images, or lower images"
            )
        if self.queue_s >= self.answer_s:
            raise ValueError(
                f"queue_s ({self.queue_s:g}) is not below answer_s ({self.answer_s:g}): a request would be given up "
                "before the replica could say that it is busy; lower queue_s"
            )
        if self.held_bytes < self.body_bytes:
            raise ValueError(
                f"held_bytes ({self.held_bytes:,}) is below body_bytes ({self.body_bytes:,}): the largest body could "
                "never be accepted; raise held_bytes, or lower body_bytes"
            )
        return self

    @property
    def requests(self) -> int:
        """The most requests that a replica can have in hand: each waits with an image, or is being read."""
        return 2 * self.queue_images


class Batching(_Strict):
    """Dynamic batching: images of several requests go through the model in one forward pass."""

    images: int = Field(32, ge=1, description="largest batch")
    wait_ms: float = Field(
        0.0,
        ge=0,
        description="milliseconds that an idle model waits for more images; 0: it takes what is there, and while it "
        "computes the next batch gathers",
    )


class _Protected(_Strict):
    storage: str = Field(
        default_factory=lambda: os.environ.get("STOKER_STORAGE", ""),
        validate_default=True,
        description="URL below which models/ is; default: STOKER_STORAGE",
    )
    authentication: Literal["keys", "none"] = Field(
        "keys", description="none: no key is needed, anybody who reaches the port may predict"
    )
    origins: list[str] = Field(
        default_factory=list,
        description='origins whose pages may ask from a browser (CORS), as https://shop.example; "*": any',
    )

    attempt: int = Field(0, ge=0, description="set by stoker deploy, so that what failed is tried again")

    @field_validator("storage")
    @classmethod
    def _storage_is_set(cls, storage: str) -> str:
        if not storage:
            raise ValueError("no storage URL; set storage, or STOKER_STORAGE in the environment")
        return storage

    @field_validator("origins")
    @classmethod
    def _origins_are_origins(cls, origins: list[str]) -> list[str]:
        for origin in origins:
            scheme, separator, host = origin.partition("://")
            if origin != "*" and (scheme not in {"http", "https"} or not separator or not host or "/" in host):
                raise ValueError(f"{origin!r} is not an origin; write a scheme and a host, as https://shop.example")
        return origins


class FrontSettings(_Protected):
    """Settings of the front: health, the list of models, the description of the protocol."""


class ModelSettings(_Protected):
    """Settings of one model's application; replicas are set under ``deployments``."""

    model: str = Field(min_length=1, description="reference: digits@production, digits@3, digits (newest)")
    version: str = Field(
        "", description="the version behind the reference; set by stoker deploy, so that a moved alias is a new config"
    )
    top: int = Field(5, ge=1, description="classes to return for each image, unless the request says top")
    limits: Limits = Limits.model_validate({})
    batching: Batching = Batching.model_validate({})
    engine: str = Field(
        "auto",
        min_length=1,
        description="how the forward pass is computed (docs/explanation/engines.md); auto: measured",
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="bfloat16: auto may take an engine that moves probabilities by up to 0.01"
    )
    engine_s: float = Field(3.0, gt=0, description="seconds that a replica spends on choosing its engine")

    @field_validator("model")
    @classmethod
    def _name_is_free(cls, model: str) -> str:
        if model.partition("@")[0] == FRONT:
            raise ValueError(f"model name {FRONT!r} is the front's application; publish it under another name")
        return model

    @property
    def name(self) -> str:
        """The model's name, which is the application's too."""
        return self.model.partition("@")[0]

    @property
    def route_prefix(self) -> str:
        return PREFIX + self.name

    @property
    def references(self) -> tuple[str, ...]:
        """What may stand behind ``@`` in a request's path, as ``production`` and ``3``."""
        told = (self.model.partition("@")[2], self.version.partition("@")[2])
        return tuple(dict.fromkeys(reference for reference in told if reference))

    def resolved(self) -> ModelSettings:
        """These settings with the version of their reference, looked up in the registry unless they have it.

        Raises:
            ModelError: the model, version or alias is unknown.
            StorageError: the registry cannot be read.
        """
        if self.version:
            return self
        from stoker.registry import Registry  # imports torch, which takes seconds
        from stoker.storage import locate

        found = Registry(locate(self.storage, timeout_s=10)).resolve(self.model).reference
        return self.model_copy(update={"version": found})


def least_ongoing(limits: Limits) -> int:
    """The least ``max_ongoing_requests`` of a deployment with which its replicas can say that they are busy.

    Serve lets no more than that into a replica and keeps the others waiting, so the replica's own limits must come
    first.
    """
    return 2 * limits.requests


def least_shutdown_s(limits: Limits) -> float:
    """The least ``graceful_shutdown_timeout_s`` with which no accepted request is cut off when a replica ends.

    A replica stays reachable for a while (``RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S``, 30 s by default), and
    then finishes what it has accepted.
    """
    return limits.read_s + limits.answer_s + 45
