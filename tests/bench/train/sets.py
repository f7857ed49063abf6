"""The prepared set that loaders and jobs read: bench-data's images through ``jobs/prepare.py``, in the store."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec

from bench.data.images import write_images
from bench.train.place import CHECKOUT, Place
from bench.train.ranks import child_environment
from stoker.embedded import ObjectStore, Settings, StateFolder
from stoker.errors import StokerError

__all__ = ["CLASSES", "place_in_store"]

logger = logging.getLogger(__name__)

CLASSES = 8


@contextlib.contextmanager
def place_in_store(folder: Path, images: int) -> Iterator[tuple[Place, dict[str, str]]]:
    """Start an object store on free ports with the data set in it, and yield the variables to reach it.

    The variables are this process's as well.

    Raises:
        StokerError: the store does not start, or the set cannot be prepared.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = Settings.model_validate({"ports": {"s3": 0, "gcs": 0, "dashboard": 0, "serve": 0}})
    store = ObjectStore(StateFolder(folder / "state"), settings)
    try:  # from before the start, which may be interrupted too
        with store.folder.lock():
            store.start()
        variables = store.environment()
        os.environ |= variables
        yield Place(str(folder), _make_set(folder, store.url, images), f"{store.url}/bench-train"), variables
    finally:
        with store.folder.lock():
            store.stop()


def _make_set(folder: Path, store_url: str, images: int) -> str:
    """Return the data set's URL, preparing it if it does not exist.

    Raises:
        StokerError: the preparation fails.
    """
    url = f"{store_url}/sets/images-{images}"
    if fsspec.filesystem("s3").exists(f"{url}/dataset.json"):
        return url
    source = folder / f"images-{images}"
    if not (source / "made").exists():
        logger.info("making %d images (once)", images)
        write_images(source / "images", images, CLASSES, 0, os.cpu_count() or 1)
        (source / "made").touch()
    command = [
        sys.executable,
        "jobs/prepare.py",
        str(source / "images"),
        url,
        "--validation-fraction",
        "0.1",
        "--local",
    ]
    done = subprocess.run(command, cwd=CHECKOUT, env=child_environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise StokerError(f"jobs/prepare.py failed: {(done.stderr.strip().splitlines() or ['no output'])[-1]}")
    return url
