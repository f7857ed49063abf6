"""Hugging Face datasets: Parquet, streamed, two workers of a torch DataLoader; decoding in the workers' collate."""

from __future__ import annotations

from typing import Any

import datasets
import pyarrow.parquet  # noqa: F401
import s3fs  # noqa: F401 - imported before the clock starts
from torch.utils.data import DataLoader

from bench.data.peers.decoders import Decoder, collate
from bench.data.peers.sources import storage_options
from bench.data.place import BATCH, WORKERS, Place

__all__ = ["load"]


def load(place: Place, decoder: str, source: str) -> Any:
    """Batches of one epoch, shuffled in a buffer of 1,000."""
    datasets.disable_progress_bars()
    where = place.url("parquet") if source == "s3" else str(place.local("parquet"))
    rows = datasets.load_dataset(
        "parquet",
        data_files=[f"{where}/{name}" for name in place.files("parquet", ".parquet")],
        split="train",
        streaming=True,
        storage_options=storage_options() if source == "s3" else None,
    ).shuffle(seed=0, buffer_size=1000)
    decode = Decoder(decoder)

    def decoded(found: list[dict[str, Any]]) -> tuple[Any, Any]:
        return collate([(decode(row["image"]), row["label"]) for row in found])

    return DataLoader(rows, BATCH, num_workers=WORKERS, collate_fn=decoded, prefetch_factor=4)
