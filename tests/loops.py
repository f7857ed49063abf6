"""Small loaders whose loops are ended, moved and closed by tests."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable

from stoker.dataset import Loader
from stoker.recipe import Data
from stoker.storage import Location

__all__ = ["SHARDS", "STEPS", "loader", "wait_for_threads", "wait_until"]

SHARDS = [50, 7, 1, 80, 33]
STEPS = sum(SHARDS) // 24


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, [thread.name for thread in threading.enumerate()]
        time.sleep(0.002)


def loader(root: Location, *, epochs: int | None = None, **options: object) -> Loader:
    given = {"global_batch": 24, "micro_batch": 4, "seed": 3} | options
    data = {"image_size": 16, "block_samples": 8, "window_blocks": 2, "memory_mb": 1, "decode_threads": 2}
    return Loader(root, "train", data=Data(url=root.url, **data), epochs=epochs, **given)  # type: ignore[arg-type]


def wait_for_threads() -> None:
    """Wait until no thread of ours is left."""
    gc.collect()
    wait_until(lambda: not [t.name for t in threading.enumerate() if t.name.startswith("stoker-")])
