"""JSON bodies of the HTTP protocol: what a client parses and what /openapi.json describes."""

from __future__ import annotations

from pydantic import BaseModel

__all__ = [
    "ClassProbability",
    "Health",
    "Links",
    "ModelEntry",
    "ModelReady",
    "Models",
    "Predictions",
    "ProblemDetails",
    "Readiness",
]


class ClassProbability(BaseModel):
    """One class of a prediction; ``probability`` is between 0 and 1."""

    label: str
    probability: float


class Predictions(BaseModel):
    """``predictions[i]`` are the classes of image i, the most probable first; ``model`` is a version: ``digits@3``."""

    model: str
    predictions: list[list[ClassProbability]]


class ModelEntry(BaseModel):
    """A served model: ``reference`` is what was deployed, ``model`` the version behind it, ``image_size`` in pixels."""

    name: str
    reference: str
    model: str
    architecture: str
    classes: list[str]
    image_size: int
    accuracy: float | None
    published: str


class Models(BaseModel):
    """Every model that is served."""

    models: list[ModelEntry]


class ModelReady(BaseModel):
    """A replica of the model answers; ``model`` is its version."""

    status: str
    model: str


class Health(BaseModel):
    """The process answers."""

    status: str


class Links(BaseModel):
    """Paths of the endpoint."""

    models: str
    health: str
    readiness: str
    description: str


class Readiness(BaseModel):
    """Every model answers; ``models`` are their versions."""

    status: str
    models: list[str]


class ProblemDetails(BaseModel):
    """The body of every error (RFC 9457): ``detail`` is one line for people, ``code`` is for programs."""

    type: str
    title: str
    status: int
    detail: str
    code: str
