"""A Ray of its own for a Ray Data case: started, and its workers warmed, before anything is counted."""

from __future__ import annotations

import functools
import logging
import shutil
import tempfile
import time
from typing import Any

import pyarrow.fs
import ray
import ray.data

from bench.data.peers.sources import endpoint, key_pair
from bench.data.place import BATCH, WORKERS, Place

__all__ = ["batches", "first_batch_s", "read_options", "start", "stop", "where"]


def start() -> None:
    """Start Ray with as many CPUs as the other loaders have workers."""
    ray.init(
        num_cpus=WORKERS,
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=False,
        object_store_memory=3 * 2**30,
        _temp_dir=_folder(),
    )
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.use_datasource_v2 = False  # the newer reader lists for 14 s before it reads, and takes 1.7 times the CPU


@functools.cache
def _folder() -> str:
    """A folder with a short path, as Ray's sockets need."""
    return tempfile.mkdtemp(prefix="ray-bench-")


def stop() -> None:
    """End Ray and remove what it wrote."""
    ray.shutdown()
    shutil.rmtree(_folder(), ignore_errors=True)


def read_options(source: str) -> dict[str, Any]:
    """The filesystem to read from."""
    if source != "s3":
        return {}
    key, secret = key_pair()
    return {
        "filesystem": pyarrow.fs.S3FileSystem(
            endpoint_override=endpoint(), access_key=key, secret_key=secret, region="us-east-1"
        )
    }


def where(place: Place, kind: str, source: str) -> str:
    return place.key(kind) if source == "s3" else str(place.local(kind))


def first_batch_s(data: Any) -> float:
    """Seconds to the first batch of a part of ``data``, all of which is then taken, so that each worker has run."""
    began, first_s = time.perf_counter(), 0.0
    for _ in data.limit(16 * BATCH).iter_torch_batches(batch_size=BATCH):
        first_s = first_s or time.perf_counter() - began
    return first_s


def batches(data: Any) -> Any:
    """(pixels, labels) of one epoch."""
    found = data.iter_torch_batches(batch_size=BATCH, local_shuffle_buffer_size=4 * BATCH)
    return ((batch["pixels"], batch["label"]) for batch in found)
