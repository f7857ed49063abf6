"""DALI on the CPU: its WebDataset reader."""

from __future__ import annotations

from typing import Any

from nvidia.dali import fn

from bench.data.peers.dali_peer import pipeline
from bench.data.place import Place

__all__ = ["load"]


def load(place: Place, decoder: str, source: str) -> Any:
    """Batches of one epoch."""

    def read() -> Any:
        encoded, label = fn.readers.webdataset(
            paths=[str(place.local("webdataset") / name) for name in place.files("webdataset", ".tar")],
            ext=["jpg", "cls"],
            missing_component_behavior="error",
            random_shuffle=True,
            initial_fill=1000,
            name="reader",
        )
        return encoded, fn.pad(label, shape=[4])  # text of one to four bytes

    return pipeline(read)
