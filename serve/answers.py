"""What the endpoint answers: errors as problem details (RFC 9457), and predictions, each written once to bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

__all__ = ["PROBLEM", "Problem", "predictions_json", "quoted"]

PROBLEM = "application/problem+json"


class Problem(Exception):
    """An error response: ``status``, a ``code`` for programs and a ``detail`` of one line for people."""

    def __init__(self, status: int, code: str, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, code, detail, headers)  # all of them: unpickling passes these to __init__
        self.status = status
        self.code = code
        self.detail = detail
        self.headers = dict(headers or {})

    def __str__(self) -> str:
        return self.detail

    def content(self) -> dict[str, Any]:
        """The members of the problem; ``code`` is an extension of ours (RFC 9457, section 3.2)."""
        title = HTTPStatus(self.status).phrase
        return {
            "type": "about:blank",
            "title": title,
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
        }

    def body(self) -> bytes:
        return json.dumps(self.content(), ensure_ascii=False).encode("utf-8", "replace")


def quoted(labels: Sequence[str]) -> list[str]:
    """Each label as the beginning of its class in an answer; made once, because a model may have 21,841 of them."""
    return [f'{{"label": {json.dumps(label)}, "probability": ' for label in labels]


def predictions_json(
    model: bytes, labels: Sequence[str], rows: Sequence[tuple[Sequence[int], Sequence[float]]]
) -> bytes:
    """The body of an answer: ``rows`` has the (class numbers, probabilities) of each image, the most probable first.

    ``model`` is the version as JSON, ``labels`` what :func:`quoted` returns.
    """
    images = ", ".join(
        "[" + ", ".join(f"{labels[number]}{value!r}}}" for number, value in zip(*row, strict=True)) + "]"
        for row in rows
    )
    return b'{"model": %b, "predictions": [%b]}' % (model, images.encode())
