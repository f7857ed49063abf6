"""SPDL: an image folder through its pipeline of threads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spdl.pipeline import PipelineBuilder

from bench.data.images import image_paths
from bench.data.peers.decoders import Decoder, collate
from bench.data.place import BATCH, WORKERS, Place

__all__ = ["load"]


def load(place: Place, decoder: str, source: str) -> Iterator[Any]:
    """Batches of one epoch."""
    decode = Decoder(decoder)

    def sample(entry: tuple[Path, int]) -> tuple[Any, int]:
        return decode(entry[0].read_bytes()), entry[1]

    builder = PipelineBuilder().add_source(image_paths(place.local("folder")))
    builder = builder.pipe(sample, concurrency=WORKERS, output_order="completion")
    pipeline = builder.aggregate(BATCH).pipe(collate).add_sink(4).build(num_threads=WORKERS + 1)
    with pipeline.auto_stop():
        yield from pipeline
