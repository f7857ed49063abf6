"""List a folder of images, one folder for each class, at any URL.

Two layouts: ``FOLDER/<class>/...``, or ``FOLDER/train/<class>/...`` with ``validation`` (or ``val``, ``valid``) and
``test`` next to it; which of them it is, ``layout`` decides. Hidden files (``.name``) and what macOS packs beside a
folder (``__MACOSX``) are ignored. A class is listed at a time, so that the listing of millions of files is never in
memory at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

from stoker.dataset.prepare.entries import Entries, Listing, shown
from stoker.dataset.prepare.plan import Options
from stoker.dataset.prepare.sources.base import Source
from stoker.dataset.prepare.sources.files import FileStats, files_below, files_in
from stoker.dataset.prepare.sources.layout import refuse_nested, splits_of
from stoker.dataset.prepare.sources.readers import FileReader
from stoker.errors import DatasetError
from stoker.storage import Location

__all__ = ["open_folder"]

_LISTERS = 8
_IGNORED = "__MACOSX"
_SPLITS = ("train", "validation", "test")


def open_folder(location: Location, options: Options) -> Source:
    """List the folder; the class of a file is its folder.

    Raises:
        DatasetError: the folder is missing, or has no class folders, no images, or an empty class (named); or it is
            not clear whether its folders are classes or splits.
        StorageError: the place cannot be read.
    """
    files, folders = _inside(location)
    if not files and not folders:
        raise DatasetError(f"no images at {location}: the folder is empty or does not exist; check the path or URL")
    if not folders:
        raise DatasetError(
            f"{location} has no class folders, only files ({shown(min(files))}, ...); put the images of each class "
            "into a folder named after it"
        )
    strays = _outside("", files)
    split_folders = splits_of(location, folders, options, lambda name: bool(files_in(location / name)[0]))
    if split_folders is not None:
        return _already_split(location, split_folders, folders, strays, options)
    classes = _class_names(location, folders)
    entries = _entries(location, "", classes, folders, options)
    return Source(location.url, classes, {"train": entries}, FileReader(location), (*strays,))


def _inside(location: Location) -> tuple[FileStats, list[str]]:
    files, folders = files_in(location)
    return files, [name for name in folders if name != _IGNORED]


def _outside(prefix: str, files: Iterable[str]) -> list[tuple[str, str]]:
    return [(shown(f"{prefix}{name}"), "lies outside the class folders") for name in sorted(files)]


def _class_names(location: Location, folders: list[str]) -> tuple[str, ...]:
    for name in folders:
        if shown(name) != name:  # it would become the name of a class, which models and servers tell
            raise DatasetError(f"{location}/{shown(name)}: the name of this class folder is not UTF-8; rename it")
    return tuple(folders)


def _already_split(
    location: Location, names: dict[str, str], folders: list[str], strays: list[tuple[str, str]], options: Options
) -> Source:
    classes: tuple[str, ...] = ()
    splits: dict[str, Entries] = {}
    for split in _SPLITS:
        if split not in names:
            continue
        root = location / names[split]
        files, here = _inside(root)
        strays += _outside(f"{names[split]}/", files)
        if not here:
            raise DatasetError(
                f"{root} has no class folders; put the images of each class into a folder of its name, or say "
                "--top-folders classes if it is a class itself"
            )
        classes = classes or _class_names(root, here)
        unknown = [name for name in here if name not in classes]
        if unknown:
            raise DatasetError(
                f"{root / shown(unknown[0])}: unknown class, not in {location / names['train']}; give all splits the "
                "same classes"
            )
        splits[split] = _entries(location, f"{names[split]}/", classes, here, options)
    left = [shown(name) for name in folders if name not in names.values()]
    notes = (f"left out the folders {', '.join(left)}: none is a split",) if left else ()
    return Source(location.url, classes, splits, FileReader(location), tuple(strays), notes=notes)


def _entries(location: Location, prefix: str, classes: tuple[str, ...], here: list[str], options: Options) -> Entries:
    root = location / prefix if prefix else location
    labels = {name: label for label, name in enumerate(classes)}
    listing = Listing(key_start=len(prefix))
    empty: list[str] = []
    inside: list[frozenset[str] | None] = []
    for name, found in _listed(root, here):
        if not found:
            empty.append(name)
        inside.append(_folders_only(found))
        for path in sorted(found):
            listing.add(f"{prefix}{name}/{path}", labels[name], *found[path])
    if len(empty) == len(here):
        raise DatasetError(f"no images at {root}: its {len(here)} class folders are empty")
    if empty:
        raise DatasetError(f"{root / empty[0]}: the class {empty[0]!r} is empty; add images or remove its folder")
    if options.top_folders is None:
        refuse_nested(root, inside, here)
    return listing.entries()


def _folders_only(files: Iterable[str]) -> frozenset[str] | None:
    """The folders that ``files`` are in, None if one is in none."""
    found = set()
    for path in files:
        folder, slash, _ = path.partition("/")
        if not slash:
            return None
        found.add(folder)
    return frozenset(found)


def _listed(root: Location, folders: list[str]) -> Iterator[tuple[str, FileStats]]:
    with ThreadPoolExecutor(_LISTERS, thread_name_prefix="stoker-list") as pool:
        for begin in range(0, len(folders), _LISTERS):  # a bounded number of listings at once
            some = folders[begin : begin + _LISTERS]
            yield from zip(some, pool.map(lambda name: files_below(root / name), some), strict=True)
