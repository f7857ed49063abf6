"""The first source: a folder of images, one folder a class, at any URL.

Two layouts: ``FOLDER/<class>/...`` of which a part of each class is held out, or ``FOLDER/train/<class>/...`` with
``validation`` (or ``val``, ``valid``) and ``test`` beside it. Hidden files (``.name``) are ignored.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

from stoker.dataset.prepare.plan import Entry, Options, held_out, unique_keys
from stoker.errors import DatasetError
from stoker.storage import Location
from stoker.storage.retry import call_with_retries

__all__ = ["ImageFolder", "is_inside"]

_SPLITS = {"train": "train", "validation": "validation", "val": "validation", "valid": "validation", "test": "test"}
_DEFAULT_SHARE = 0.2

_Listed = dict[str, tuple[int, str]]
"""path to (bytes, stamp)"""


@dataclass(frozen=True)
class ImageFolder:
    """Images by class folder. ``strays`` are files that belong to no class: (path, what is wrong with it)."""

    location: Location
    classes: tuple[str, ...]
    splits: dict[str, tuple[Entry, ...]]
    strays: tuple[tuple[str, str], ...] = ()

    @property
    def url(self) -> str:
        return self.location.url

    def patient(self, patience_s: float) -> ImageFolder:
        """The same folder, whose reads are tried again for ``patience_s`` seconds."""
        return replace(self, location=self.location.patient(patience_s))

    def read(self, entry: Entry) -> bytes:
        """The file's bytes.

        Raises:
            DatasetError: it is gone, or this machine does not see it.
        """
        where = self.location / entry.path
        try:
            return where.read()
        except FileNotFoundError:
            raise DatasetError(
                f"{where}: listed a moment ago but not there now; where several machines prepare, all must see the "
                "source (or give --local), and broken links must go"
            ) from None

    def reader(self) -> ImageFolder:
        """The same folder without its listing: small enough to be sent along with each task."""
        return ImageFolder(self.location, (), {})

    @classmethod
    def scan(cls, location: Location, options: Options) -> ImageFolder:
        """List the folder and decide each file's class and split.

        Raises:
            DatasetError: no such folder, no class folders, no images, or an empty class (named).
            StorageError: the place cannot be read.
        """
        listed = _list(location)
        top = location.children()
        if not listed and not top:
            raise DatasetError(f"no images at {location}: no such folder, or nothing in it; check the path or URL")
        folders = sorted(
            {path.split("/", 1)[0] for path in listed if "/" in path} | {n for n in top if n not in listed}
        )
        if not folders:
            raise DatasetError(
                f"{location} has no class folders, only files ({min(listed)}, ...); put the images of each class "
                "into a folder named after it"
            )
        strays = tuple((path, "lies outside the class folders") for path in sorted(listed) if "/" not in path)
        if "train" in folders and set(folders) <= set(_SPLITS):
            return _already_split(location, listed, folders, strays, options)
        classes = tuple(folders)
        by_class = _by_class(location, listed, classes)
        splits = _carve(by_class, options)
        return cls(location, classes, _entries(splits, classes, listed, prefix=""), strays)


def _already_split(
    location: Location, listed: _Listed, folders: list[str], strays: tuple[tuple[str, str], ...], options: Options
) -> ImageFolder:
    names = {_SPLITS[folder]: folder for folder in folders}
    if len(names) != len(folders):
        raise DatasetError(f"{location} has two validation folders ({', '.join(folders)}); keep one")
    if "validation" in names and options.validation_share is not None:
        raise DatasetError(
            f"{location} has a {names['validation']} folder already; leave --validation-share out, or remove it"
        )
    classes: tuple[str, ...] = ()
    splits: dict[str, tuple[Entry, ...]] = {}
    outside = list(strays)
    for split in sorted(names, key=list(_SPLITS.values()).index):
        folder, root = names[split], location / names[split]
        below = {path[len(folder) + 1 :]: at for path, at in listed.items() if path.startswith(f"{folder}/")}
        outside += [(f"{folder}/{p}", "lies outside the class folders") for p in sorted(below) if "/" not in p]
        here = tuple(
            sorted({p.split("/", 1)[0] for p in below if "/" in p} | {n for n in root.children() if n not in below})
        )
        if not here:
            raise DatasetError(f"{root} has no class folders; put the images of each class into a folder of its name")
        classes = classes or here
        unknown = [name for name in here if name not in classes]
        if unknown:
            raise DatasetError(
                f"{root / unknown[0]}: there is no such class in {location / 'train'}; the splits differ"
            )
        by_class = _by_class(root, below, here)
        if split == "train" and "validation" not in names:
            carved = _carve(by_class, options)
        else:
            carved = {split: [path for paths in by_class.values() for path in paths]}
        splits |= _entries(carved, classes, below, prefix=f"{folder}/")
    return ImageFolder(location, classes, splits, tuple(outside))


def _by_class(root: Location, listed: _Listed, classes: tuple[str, ...]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted(listed):
        if "/" in path:
            found[path.split("/", 1)[0]].append(path)
    empty = [name for name in classes if not found[name]]
    if len(empty) == len(classes):
        raise DatasetError(f"no images at {root}: its {len(classes)} class folders are empty")
    if empty:
        raise DatasetError(f"{root / empty[0]}: the class {empty[0]!r} is empty; add images or remove its folder")
    return {name: found[name] for name in classes}


def _carve(by_class: dict[str, list[str]], options: Options) -> dict[str, list[str]]:
    share = _DEFAULT_SHARE if options.validation_share is None else options.validation_share
    train, validation = [], []
    for paths in by_class.values():
        chosen = held_out(paths, share, options.seed)
        validation += [path for path in paths if path in chosen]
        train += [path for path in paths if path not in chosen]
    return {"train": train, "validation": validation} if validation else {"train": train}


def _entries(
    splits: dict[str, list[str]], classes: tuple[str, ...], listed: _Listed, *, prefix: str
) -> dict[str, tuple[Entry, ...]]:
    labels = {name: label for label, name in enumerate(classes)}
    return {
        split: tuple(
            Entry(key, labels[path.split("/", 1)[0]], prefix + path, *listed[path])
            for path, key in zip(sorted(paths), unique_keys(sorted(paths)), strict=True)
        )
        for split, paths in splits.items()
    }


def _list(location: Location) -> _Listed:
    def once() -> dict[str, dict[str, Any]]:
        location.filesystem.invalidate_cache()
        return dict(location.filesystem.find(location.path, detail=True))

    try:
        found = call_with_retries(once, what="list", url=location.url, patience_s=location.patience_s)
    except FileNotFoundError:
        return {}
    own = location.path.rstrip("/")
    if own in found:
        raise DatasetError(f"{location} is a file, not a folder; give the folder that holds the class folders")
    listed = {}
    for path, info in found.items():
        relative = path[len(own) + 1 :]
        if not any(part.startswith(".") for part in relative.split("/")):
            stamp = next((info[k] for k in ("ETag", "etag", "mtime", "LastModified", "created") if info.get(k)), "")
            listed[relative] = (int(info["size"] or 0), str(stamp))
    return listed


def is_inside(inner: Location, outer: Location) -> bool:
    """Whether ``inner`` is ``outer`` or below it."""
    return f"{inner.url}/".startswith(f"{outer.url.rstrip('/')}/")
