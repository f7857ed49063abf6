"""Publish a model with random weights: python -m bench.serve.publish STORAGE NAME ARCHITECTURE CLASSES SIZE RESIZE

It also runs by its path with an older stoker, whose registry knows no ``alias=`` yet.
"""

from __future__ import annotations

import sys

import safetensors.torch
import torch

from stoker.models import build_model
from stoker.registry import ModelCard, Preprocessing, Registry
from stoker.storage import locate


def _main(storage: str, name: str, architecture: str, classes: int, size: int, resize: int) -> None:
    torch.manual_seed(0)
    model = build_model(architecture, classes=classes)
    half = (0.5, 0.5, 0.5)
    card = ModelCard(
        architecture=architecture,
        classes=tuple(f"class {number}" for number in range(classes)),
        preprocessing=Preprocessing(image_size=size, resize=resize, mean=half, std=half),
        metrics=None,
        recipe={"model": {"name": architecture}},
        run=None,
        dataset_url=None,
        dataset_fingerprint=None,
        licence="none",
        source="random weights of a benchmark",
        published="2026-01-01T00:00:00+00:00",
        versions={},
    )
    registry = Registry(locate(storage, timeout_s=20))
    version = registry.publish(name, card, {"model.safetensors": safetensors.torch.save(model.state_dict())})
    registry.set_alias(name, "production", version.version)
    print(version.reference)


if __name__ == "__main__":
    url, model, kind = sys.argv[1:4]
    _main(url, model, kind, int(sys.argv[4]), int(sys.argv[5]), int(sys.argv[6]))
