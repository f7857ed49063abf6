"""The card of a model that nobody trained, for tests of the registry that need no weights."""

from __future__ import annotations

from stoker.registry import ModelCard, Preprocessing
from stoker.runs.records import Metrics

__all__ = ["CARD"]

CARD = ModelCard(
    architecture="digitsnet",
    classes=("a", "b"),
    preprocessing=Preprocessing(image_size=32, resize=37, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)),
    metrics=Metrics(samples=23, loss=0.5, accuracy=0.75, top5=1.0),
    recipe={"name": "run"},
    run="run",
    dataset_url="/data",
    dataset_fingerprint="sha256:0",
    published="2026-01-01T00:00:00+00:00",
    versions={"torch": "2"},
)
