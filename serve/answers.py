"""What a model returns and how a request is refused. Plain classes, as both are sent between processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

__all__ = ["Answer", "Description", "Refusal", "Served"]


@dataclass(frozen=True)
class Answer:
    """Predictions: ``rows[i]`` are the (label, probability) of image i, the most probable first."""

    model: str
    """the version that predicted: ``digits@3``"""
    rows: tuple[tuple[tuple[str, float], ...], ...]


@dataclass(frozen=True)
class Description:
    """Description of the version that a replica holds; ``image_size`` in pixels."""

    model: str
    architecture: str
    classes: tuple[str, ...]
    image_size: int
    accuracy: float | None
    """on the split that it was evaluated on, 0 to 1; None: not measured here"""
    published: str


class Refusal(Exception):
    """An HTTP error response: ``status``, a ``code`` for programs and a ``message`` for people."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(status, code, message, headers)  # all of them: unpickling passes these to __init__
        self.status = status
        self.code = code
        self.message = message
        self.headers = headers or {}

    def __str__(self) -> str:
        return self.message


class Served(Protocol):
    """A deployed model as the protocol uses it: a replica, or a handle to several."""

    async def predict(self, images: list[bytes], top: int) -> Answer | Refusal:
        """The ``top`` most probable classes of each encoded image, in the order of ``images``."""
        ...

    async def describe(self) -> Description:
        """The version that is served.

        Raises:
            Refusal: no replica is free or available.
        """
        ...
