"""The door to all sources: what kind a place is, by its name and by what lies there."""

from __future__ import annotations

from collections.abc import Callable

from stoker.dataset.prepare.plan import Options
from stoker.dataset.prepare.sources.base import Source, split_name
from stoker.dataset.prepare.sources.csv_jsonl import LIST_SUFFIXES, open_listing
from stoker.dataset.prepare.sources.files import files_in
from stoker.dataset.prepare.sources.folder import open_folder
from stoker.dataset.prepare.sources.imagenet import TRAIN_TAR, open_imagenet
from stoker.dataset.prepare.sources.parquet import SUFFIX, open_parquet
from stoker.dataset.prepare.sources.torchvision_set import PROTOCOL, open_torchvision
from stoker.dataset.prepare.sources.webdataset import has_tars, open_webdataset
from stoker.errors import DatasetError
from stoker.storage import Location, locate

__all__ = ["KINDS", "open_source"]

Opener = Callable[[str, Options, float], Source]


def _at_location(opener: Callable[[Location, Options], Source]) -> Opener:
    return lambda source, options, timeout_s: opener(locate(source, timeout_s=timeout_s), options)


KINDS: dict[str, Opener] = {
    "folder": _at_location(lambda location, _: open_folder(location)),
    "imagenet": _at_location(lambda location, _: open_imagenet(location)),
    "list": _at_location(open_listing),
    "parquet": _at_location(open_parquet),
    "torchvision": lambda source, _, timeout_s: open_torchvision(source),
    "webdataset": _at_location(open_webdataset),
}


def open_source(source: str, options: Options, *, kind: str | None = None, timeout_s: float = 60.0) -> Source:
    """List what is at ``source``, a URL, a path or ``torchvision://NAME?root=FOLDER``; ``kind`` is one of ``KINDS``.

    Nothing is written or decoded yet. ``timeout_s`` is how long the listing is tried again.

    Raises:
        DatasetError: nothing there that can be a source, or it lacks a train split.
        StorageError: the place cannot be read.
    """
    opened = KINDS[kind or _kind(source, timeout_s)](source, options, timeout_s)
    if "train" not in opened.splits:
        raise DatasetError(
            f"{source} has no train split, only {', '.join(opened.splits) or 'empty ones'}; add the images to train on"
        )
    return opened


def _kind(source: str, timeout_s: float) -> str:
    lowered = source.lower()
    for kind, is_it in (
        ("torchvision", lowered.startswith(PROTOCOL)),
        ("list", lowered.endswith(LIST_SUFFIXES)),
        ("parquet", lowered.endswith(SUFFIX)),
    ):
        if is_it:
            return kind
    return _kind_of_folder(locate(source, timeout_s=timeout_s))


def _kind_of_folder(location: Location) -> str:
    files, folders = files_in(location)
    if TRAIN_TAR in files:
        return "imagenet"
    if any(name.endswith(SUFFIX) for name in files):
        return "parquet"
    for name in folders:
        if (name == "data" or split_name(name)) and any(f.endswith(SUFFIX) for f in files_in(location / name)[0]):
            return "parquet"
    return "webdataset" if has_tars(location) else "folder"
