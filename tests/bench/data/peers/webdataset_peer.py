"""WebDataset: tar shards through its own reader, two workers of a torch DataLoader (stateful for a resume)."""

from __future__ import annotations

import sys
from typing import Any

import s3fs  # noqa: F401 - imports are done before the clock starts, also those that a peer puts off
import webdataset

from bench.data.peers.decoders import Decoder, collate
from bench.data.peers.sources import identity, storage_options
from bench.data.place import BATCH, WORKERS, Place

__all__ = ["load"]


def load(place: Place, decoder: str, source: str, *, identifies: bool = False) -> Any:
    """Batches of one epoch; with ``identifies`` the samples' identities for labels, in a loader that has a state."""
    if source == "s3":
        sys.modules["webdataset.gopen"].gopen_schemes["s3"] = _open  # its own way is a pipe to a program
    where = place.url("webdataset") if source == "s3" else str(place.local("webdataset"))
    urls = [f"{where}/{name}" for name in place.files("webdataset", ".tar")]
    decode = Decoder(decoder)

    def sample(row: tuple[bytes, bytes]) -> tuple[Any, int]:
        return decode(row[0]), identity(row[0]) if identifies else int(row[1])

    rows = webdataset.WebDataset(urls, shardshuffle=False if identifies else 100, nodesplitter=None, empty_check=False)
    rows = rows.shuffle(1000).to_tuple("jpg", "cls").map(sample)
    if identifies:
        from torchdata.stateful_dataloader import StatefulDataLoader as DataLoader
    else:
        from torch.utils.data import DataLoader
    return DataLoader(rows, BATCH, num_workers=WORKERS, collate_fn=collate, prefetch_factor=4)


def _open(url: str, mode: str = "rb", bufsize: int = 8192, **_: Any) -> Any:
    import fsspec

    filesystem = fsspec.filesystem("s3", **storage_options())
    return filesystem.open(url, "rb", block_size=8 * 2**20, cache_type="readahead")
