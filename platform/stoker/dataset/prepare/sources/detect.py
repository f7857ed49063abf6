"""The table of source kinds, and the choice of one: by the URL, else by what the folder holds.

A new kind of source is a module next to this one, a row in :data:`KINDS`, and a test: ``--kind``, ``--help`` and
:func:`open_source` follow the table, and a test compares docs/how-to/prepare-sources.md with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from stoker.dataset.prepare.borders import parsing
from stoker.dataset.prepare.plan import Options
from stoker.dataset.prepare.sources.base import Source
from stoker.dataset.prepare.sources.csv_jsonl import is_list, open_list
from stoker.dataset.prepare.sources.files import FileStats, files_in
from stoker.dataset.prepare.sources.folder import open_folder
from stoker.dataset.prepare.sources.imagenet import holds_imagenet, open_imagenet
from stoker.dataset.prepare.sources.parquet import holds_parquet, is_parquet, open_parquet
from stoker.dataset.prepare.sources.torchvision_set import is_torchvision, open_torchvision
from stoker.dataset.prepare.sources.webdataset import holds_tars, open_webdataset
from stoker.errors import DatasetError
from stoker.storage import Location, locate

__all__ = ["KINDS", "SourceKind", "open_source"]


@dataclass(frozen=True)
class SourceKind:
    """A kind of source: how it is recognised, opened, and described by ``--help``."""

    summary: str
    """what SOURCE is, for people"""
    open: Callable[[Location, Options], Source]
    """lists the samples; raises DatasetError or StorageError"""
    is_url: Callable[[str], bool] = lambda _: False
    """whether the URL alone (in lower case) shows that it is of this kind"""
    is_folder: Callable[[Location, FileStats, list[str]], bool] = lambda *_: False
    """whether a folder with these files and folders in it is of this kind"""
    is_filesystem: bool = True
    """whether the URL is one that fsspec opens"""


KINDS: dict[str, SourceKind] = {
    "torchvision": SourceKind(
        "torchvision://CIFAR10?root=FOLDER: any classification data set of torchvision that is on disk",
        open_torchvision,
        is_url=is_torchvision,
        is_filesystem=False,
    ),
    "list": SourceKind("a .csv or .jsonl file with the columns path and label", open_list, is_url=is_list),
    "imagenet": SourceKind(
        "a folder with ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and the devkit",
        open_imagenet,
        is_folder=holds_imagenet,
    ),
    "parquet": SourceKind(
        "a file, folder or pattern of Parquet with a column of images and one of labels",
        open_parquet,
        is_url=is_parquet,
        is_folder=holds_parquet,
    ),
    "webdataset": SourceKind(
        "a folder of WebDataset tars, indexed in place or, with --copy, copied", open_webdataset, is_folder=holds_tars
    ),
    "folder": SourceKind(
        "one folder of images for each class, or train/ and validation/ with such folders",
        open_folder,
    ),
}
"""by the word for ``--kind``, tried in this order; any other folder is of the kind ``folder``"""


def open_source(source: str, options: Options, *, kind: str | None = None, timeout_s: float = 60.0) -> Source:
    """List the samples at ``source``, a URL, a path or ``torchvision://NAME?root=FOLDER``.

    ``kind`` is a key of :data:`KINDS`, by default the one that is recognised. Nothing is written or decoded yet.
    ``timeout_s``: seconds for which a failing listing is retried.

    Raises:
        DatasetError: nothing there that can be a source, or it lacks a train split.
        StorageError: the place cannot be read.
    """
    name = kind or _recognised(source, timeout_s)
    chosen = KINDS[name]
    location = locate(source, timeout_s=timeout_s) if chosen.is_filesystem else Location(source, timeout_s)
    with parsing(source, f"cannot be listed as a source of the kind {name}", "check its files, or give another --kind"):
        opened = chosen.open(location, options)
    if "train" not in opened.splits:
        raise DatasetError(
            f"{source} has no train split, only {', '.join(opened.splits) or 'empty ones'}; add the images to train on"
        )
    return opened


def _recognised(source: str, timeout_s: float) -> str:
    for name, kind in KINDS.items():
        if kind.is_url(source.lower()):
            return name
    location = locate(source, timeout_s=timeout_s)
    files, folders = files_in(location)
    return next((name for name, kind in KINDS.items() if kind.is_folder(location, files, folders)), "folder")
