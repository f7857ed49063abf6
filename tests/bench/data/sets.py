"""The sets that the cases read, made once and kept: images, each peer's format, and all of them in the store.

Only stoker's own is made anew each time, by the command that users call, because the code that makes it is what is
measured.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import fsspec

from bench.data.clients import RANGES
from bench.data.environments import CHECKOUT, Environments, child_environment
from bench.data.images import write_images
from bench.data.ours import ranges
from bench.data.place import Place
from stoker.dataset.format.manifest import Manifest, Split, read_manifest, write_manifest
from stoker.errors import StokerError
from stoker.storage import locate

__all__ = ["make_images", "make_peer_sets", "make_stoker_set"]

logger = logging.getLogger(__name__)

_CLASSES = 128
_IMAGENET_SAMPLES = 1_281_167
_IN_STORE = ("folder", "webdataset", "litdata", "mds", "parquet")
_MAKER = {"webdataset": "peers", "litdata": "peers", "mds": "peers", "parquet": "peers", "ffcv": "ffcv"}


def make_images(place: Place, seed: int) -> None:
    """The image folder itself."""
    if not _is_made(place, "folder"):
        logger.info("making %d images (once)", place.images)
        processes = os.cpu_count() or 1
        write_images(place.local("folder"), place.images, min(_CLASSES, place.images // 8), seed, processes)
        _note_made(place, "folder")


def make_peer_sets(place: Place, kinds: set[str], environments: Environments, store: dict[str, str]) -> dict[str, str]:
    """Those of ``kinds`` that are peers' formats, on disk and in the store; returns what could not be made, and why."""
    absent = {}
    for kind, maker in _MAKER.items():
        python = environments.python.get(maker)
        if kind in kinds and python is not None and not _is_made(place, kind):
            logger.info("writing the set as %s (once)", kind)
            command = [python, "-m", "bench.data.formats", kind, str(place.local("folder")), str(place.local(kind))]
            done = subprocess.run(command, env=child_environment(store), capture_output=True, text=True, check=False)
            if done.returncode:
                absent[kind] = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
                continue
            _note_made(place, kind)
    for kind in _IN_STORE:
        if kind in kinds and _is_made(place, kind):
            _upload(place, kind)
    return absent


def make_stoker_set(place: Place, kinds: set[str], store: dict[str, str]) -> float:
    """Our own set in the store by ``jobs/prepare.py``, a copy on disk, and the ranges to read.

    If ``kinds`` has it, a set of ImageNet's shape is made of it.

    Returns how many images a second the preparation took in.

    Raises:
        StokerError: the command fails.
    """
    filesystem = fsspec.filesystem("s3")
    for kind in ("stoker", "imagenet_shape"):
        shutil.rmtree(place.local(kind), ignore_errors=True)
        if filesystem.exists(place.key(kind)):
            filesystem.rm(place.key(kind), recursive=True)
    command = [sys.executable, "jobs/prepare.py", str(place.local("folder")), place.url("stoker")]
    done = subprocess.run(
        [*command, "--validation-fraction", "0", "--local", "--replace"],
        cwd=CHECKOUT,
        env=child_environment(store),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise StokerError(f"jobs/prepare.py failed: {(done.stderr.strip().splitlines() or ['without a word'])[-1]}")
    summary = json.loads(done.stdout.splitlines()[-1])
    filesystem.get(place.key("stoker"), str(place.local("stoker")), recursive=True)
    if "imagenet_shape" in kinds:
        _write_imagenet_shape(place)
    (Path(place.folder) / RANGES).write_text(json.dumps(ranges(place)))
    return float(summary["images_per_s"])


def _write_imagenet_shape(place: Place) -> None:
    """A split as long as ImageNet's: our shards, named as often as it takes, in one manifest."""
    filesystem = fsspec.filesystem("s3")
    split = read_manifest(locate(place.url("stoker"))).split("train")
    for path in (path for shard in split.shards for path in (shard.path, shard.index_path)):
        filesystem.copy(f"{place.key('stoker')}/{path}", f"{place.key('imagenet_shape')}/{path}")
    times = -(-_IMAGENET_SAMPLES // split.samples)
    classes = read_manifest(locate(place.url("stoker"))).classes
    manifest = Manifest(classes, {"train": Split(split.samples * times, split.shards * times)})
    write_manifest(locate(place.url("imagenet_shape")), manifest)


def _upload(place: Place, kind: str) -> None:
    filesystem = fsspec.filesystem("s3")
    mark = f"{place.bucket}/{place.prefix}/uploaded/{kind}"
    if filesystem.exists(mark):
        return
    logger.info("uploading the set as %s (once)", kind)
    if filesystem.exists(place.key(kind)):
        filesystem.rm(place.key(kind), recursive=True)
    filesystem.put(f"{place.local(kind)}/", f"{place.key(kind)}/", recursive=True)
    filesystem.pipe_file(mark, b"")


def _mark(place: Place, kind: str) -> Path:
    return Path(place.folder) / "made" / kind


def _is_made(place: Place, kind: str) -> bool:
    if _mark(place, kind).exists():
        return True
    shutil.rmtree(place.local(kind), ignore_errors=True)
    return False


def _note_made(place: Place, kind: str) -> None:
    _mark(place, kind).parent.mkdir(parents=True, exist_ok=True)
    _mark(place, kind).touch()
