"""List a folder of images, one folder for each class, at any URL.

Two layouts: ``FOLDER/<class>/...``, or ``FOLDER/train/<class>/...`` with ``validation`` (or ``val``, ``valid``) and
``test`` next to it. Hidden files (``.name``) are ignored. A class is listed at a time, so that the listing of
millions of files is never in memory at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from stoker.dataset.prepare.entries import Entries, Listing
from stoker.dataset.prepare.plan import Options
from stoker.dataset.prepare.sources.base import Source, split_name
from stoker.dataset.prepare.sources.files import FileStats, files_below, files_in
from stoker.dataset.prepare.sources.readers import FileReader
from stoker.errors import DatasetError
from stoker.storage import Location

__all__ = ["open_folder"]

_LISTERS = 8


def open_folder(location: Location, _: Options) -> Source:
    """List the folder; the class of a file is its folder.

    Raises:
        DatasetError: the folder is missing, or has no class folders, no images, or an empty class (named).
        StorageError: the place cannot be read.
    """
    files, folders = files_in(location)
    if not files and not folders:
        raise DatasetError(f"no images at {location}: the folder is empty or does not exist; check the path or URL")
    if not folders:
        raise DatasetError(
            f"{location} has no class folders, only files ({min(files)}, ...); put the images of each class "
            "into a folder named after it"
        )
    strays = [(name, "lies outside the class folders") for name in sorted(files)]
    if "train" in folders and all(name == name.lower() and split_name(name) for name in folders):
        return _already_split(location, folders, strays)
    classes = tuple(folders)
    return Source(location.url, classes, {"train": _entries(location, "", classes)}, FileReader(location), (*strays,))


def _already_split(location: Location, folders: list[str], strays: list[tuple[str, str]]) -> Source:
    names = {split_name(folder): folder for folder in folders}
    if len(names) != len(folders):
        raise DatasetError(f"{location} has two validation folders ({', '.join(folders)}); keep one")
    classes: tuple[str, ...] = ()
    splits: dict[str, Entries] = {}
    for split in ("train", "validation", "test"):
        if split not in names:
            continue
        root = location / names[split]
        files, here = files_in(root)
        strays += [(f"{names[split]}/{name}", "lies outside the class folders") for name in sorted(files)]
        if not here:
            raise DatasetError(f"{root} has no class folders; put the images of each class into a folder of its name")
        classes = classes or tuple(here)
        unknown = [name for name in here if name not in classes]
        if unknown:
            raise DatasetError(
                f"{root / unknown[0]}: unknown class, not in {location / 'train'}; give all splits the same classes"
            )
        splits[split] = _entries(location, f"{names[split]}/", classes, here)
    return Source(location.url, classes, splits, FileReader(location), tuple(strays))


def _entries(location: Location, prefix: str, classes: tuple[str, ...], here: list[str] | None = None) -> Entries:
    here = list(classes) if here is None else here
    labels = {name: label for label, name in enumerate(classes)}
    listing = Listing(key_start=len(prefix))
    empty = []
    for name, found in _listed(location / prefix if prefix else location, here):
        if not found:
            empty.append(name)
        for path in sorted(found):
            listing.add(f"{prefix}{name}/{path}", labels[name], *found[path])
    root = location / prefix if prefix else location
    if len(empty) == len(here):
        raise DatasetError(f"no images at {root}: its {len(here)} class folders are empty")
    if empty:
        raise DatasetError(f"{root / empty[0]}: the class {empty[0]!r} is empty; add images or remove its folder")
    return listing.entries()


def _listed(root: Location, folders: list[str]) -> Iterator[tuple[str, FileStats]]:
    with ThreadPoolExecutor(_LISTERS, thread_name_prefix="stoker-list") as pool:
        for begin in range(0, len(folders), _LISTERS):  # a bounded number of listings at once
            some = folders[begin : begin + _LISTERS]
            yield from zip(some, pool.map(lambda name: files_below(root / name), some), strict=True)
