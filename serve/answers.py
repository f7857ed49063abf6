"""What a model answers with, and how a request is refused: light, as both cross between processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

__all__ = ["Answer", "Description", "Refusal", "Served"]


@dataclass(frozen=True)
class Answer:
    """``rows[i]`` are the (label, probability) of image i, the most probable first."""

    model: str
    """``digits@3``: the version that answered"""
    rows: tuple[tuple[tuple[str, float], ...], ...]


@dataclass(frozen=True)
class Description:
    """What a replica says of the version that it holds; sizes in pixels."""

    model: str
    architecture: str
    classes: tuple[str, ...]
    image_size: int
    accuracy: float
    published: str


class Refusal(Exception):
    """An HTTP answer other than success: ``status``, a ``code`` for programs and a ``message`` for people."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(status, code, message, headers)  # all of them, as pickling calls us with these
        self.status = status
        self.code = code
        self.message = message
        self.headers = headers or {}

    def __str__(self) -> str:
        return self.message


class Served(Protocol):
    """A deployed model as the protocol sees it: a replica, or the way to one."""

    async def predict(self, images: list[bytes], top: int) -> Answer | Refusal:
        """The ``top`` most probable classes of each encoded image, in their order."""
        ...

    async def describe(self) -> Description: ...
