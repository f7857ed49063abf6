"""MosaicML Streaming: MDS shards through its StreamingDataset and StreamingDataLoader, two workers."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import boto3  # noqa: F401 - imported before the clock starts
import streaming

from bench.data.peers.decoders import Decoder, collate
from bench.data.peers.sources import endpoint, identity
from bench.data.place import BATCH, WORKERS, Place

__all__ = ["load"]


class _Images(streaming.StreamingDataset):
    decode: Decoder
    identifies: bool

    def __getitem__(self, index: Any) -> tuple[Any, int]:
        row = super().__getitem__(index)
        return self.decode(row["image"]), identity(row["image"]) if self.identifies else row["label"]


def load(place: Place, decoder: str, source: str, *, identifies: bool = False) -> Any:
    """Batches of one epoch on a cold cache."""
    streaming.base.util.clean_stale_shared_memory()
    cache = Path(place.scratch) / "mosaicml"
    shutil.rmtree(cache, ignore_errors=True)
    os.environ["S3_ENDPOINT_URL"] = endpoint()
    where = {"remote": place.url("mds"), "local": str(cache)} if source == "s3" else {"local": str(place.local("mds"))}
    images = _Images(shuffle=True, batch_size=BATCH, **where)
    images.decode, images.identifies = Decoder(decoder), identifies
    for stream in images.streams:  # else the forked workers share one connection, and an answer is waited for 60 s
        stream._downloader.clean_up()
    return streaming.StreamingDataLoader(
        images, batch_size=BATCH, num_workers=WORKERS, collate_fn=collate, prefetch_factor=4
    )
