"""JSON bodies of the HTTP protocol, by route: what a client parses and what /openapi.json describes."""

from __future__ import annotations

from pydantic import BaseModel

__all__ = [
    "ClassProbability",
    "Error",
    "ErrorDetail",
    "Health",
    "ModelEntry",
    "Models",
    "Predictions",
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


class Health(BaseModel):
    """The process answers."""

    status: str


class Readiness(BaseModel):
    """Every model answers; ``models`` are their versions."""

    status: str
    models: list[str]


class ErrorDetail(BaseModel):
    """``code`` is for programs, ``message`` is one line for people."""

    code: str
    message: str


class Error(BaseModel):
    """The body of every status other than 200."""

    error: ErrorDetail
