"""Ray Data: Parquet, decoded in its map_batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import ray.data

from bench.data.peers import ray_start
from bench.data.peers.decoders import Decoder
from bench.data.place import BATCH, Place

__all__ = ["LEAVES_PROCESSES", "finish", "load", "prepare"]

LEAVES_PROCESSES = True
finish = ray_start.stop


def prepare(place: Place, decoder: str, source: str) -> float:
    """Start Ray; seconds to a first batch after that."""
    ray_start.start()
    return ray_start.first_batch_s(_data(place, decoder, source))


def load(place: Place, decoder: str, source: str) -> Any:
    """Batches of one epoch."""
    return ray_start.batches(_data(place, decoder, source))


def _data(place: Place, decoder: str, source: str) -> Any:
    decode = Decoder(decoder)

    def decoded(rows: dict[str, Any]) -> dict[str, Any]:
        return {"pixels": np.stack([decode(bytes(image)) for image in rows["image"]]), "label": rows["label"]}

    where = ray_start.where(place, "parquet", source)
    data = ray.data.read_parquet(where, shuffle="files", **ray_start.read_options(source))
    return data.map_batches(decoded, batch_size=BATCH)
