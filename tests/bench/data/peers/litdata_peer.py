"""LitData: its chunks through its StreamingDataset and StreamingDataLoader, two workers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import litdata
import obstore  # noqa: F401 - imported before the clock starts
from litdata.streaming import downloader

from bench.data.peers.decoders import Decoder, collate
from bench.data.peers.sources import endpoint, identity, key_pair
from bench.data.place import BATCH, WORKERS, Place

__all__ = ["load"]


class _Images(litdata.StreamingDataset):
    decode: Decoder
    identifies: bool

    def __getitem__(self, index: Any) -> tuple[Any, int]:
        row = super().__getitem__(index)
        return self.decode(row["image"]), identity(row["image"]) if self.identifies else row["label"]


def load(place: Place, decoder: str, source: str, *, identifies: bool = False) -> Any:
    """Batches of one epoch on a cold cache; the cache's path is always the same, because its state names it."""
    cache = Path(place.scratch) / "litdata"
    shutil.rmtree(cache, ignore_errors=True)
    cache.mkdir(parents=True)
    options: dict[str, Any] = {}
    if source == "s3":
        downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True  # it refuses an endpoint without TLS otherwise
        key, secret = key_pair()
        names = {"endpoint_url": endpoint(), "aws_access_key_id": key, "aws_secret_access_key": secret}
        options = {"storage_options": names, "cache_dir": str(cache)}
    where = place.url("litdata") if source == "s3" else str(place.local("litdata"))
    images = _Images(where, shuffle=True, drop_last=False, **options)
    images.decode, images.identifies = Decoder(decoder), identifies
    return litdata.StreamingDataLoader(
        images, batch_size=BATCH, num_workers=WORKERS, collate_fn=collate, prefetch_factor=4
    )
