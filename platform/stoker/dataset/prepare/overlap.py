"""Refuse a destination that overlaps the source: preparing would overwrite or list again what it reads."""

from __future__ import annotations

import contextlib
import os
import re
from urllib.parse import parse_qs, urlsplit

from stoker.dataset.format.manifest import MANIFEST, read_manifest
from stoker.dataset.prepare.destination import is_written_by_stoker
from stoker.dataset.prepare.sources import Source
from stoker.errors import DatasetError, StokerError
from stoker.storage import Location, locate

__all__ = ["refuse_overlap"]

_DEPTH = 2
"""of the folders that stoker writes into: train, index/train, build/spill"""
_GLOB = re.compile(r"[*?\[]")


def refuse_overlap(source: Source, root: Location) -> None:
    """Check that neither ``root`` is inside ``source`` nor anything of ``source`` inside ``root``, links resolved.

    Tars may be indexed where they are: then only a data set at ``root`` that consists of them is refused, because its
    shards would be deleted to make room.

    Raises:
        DatasetError: they overlap.
    """
    own, places = _resolved(root.url), [_resolved(url) for url in _places(source)]
    linked = _linked(places, root)
    if source.is_indexed:
        if any(_is_inside(shard, place) for shard in _own_shards(root) for place in (*places, *linked)):
            raise DatasetError(
                f"{root} holds a data set whose shards are the source {source.url}; choose another destination"
            )
        return
    if _is_inside(own, _resolved(source.url)):
        raise DatasetError(f"{root} is inside the source {source.url}; choose a destination outside of it")
    for url, place in zip(_places(source), places, strict=True):
        if _is_inside(place, own):
            raise DatasetError(
                f"{url}, which is read, is inside the destination {root}; choose a destination elsewhere"
            )
    for target in linked:
        if _is_inside(target, own) or _is_inside(own, target):
            raise DatasetError(
                f"{target}, which is read through a link, overlaps the destination {root}; choose a destination "
                "elsewhere"
            )
    for link, target in _links_at(root):
        if any(_is_inside(target, place) or _is_inside(place, target) for place in places):
            raise DatasetError(
                f"{link} in the destination leads to {target}, which is read; choose a destination elsewhere"
            )


def _places(source: Source) -> list[str]:
    """URLs of the files and folders that ``source`` is read from."""
    parts = urlsplit(source.url)
    if parts.scheme == "torchvision":
        return [url for values in parse_qs(parts.query).values() for url in values if os.path.exists(url)]
    whole = source.url
    if pattern := _GLOB.search(whole):
        whole = whole[: pattern.start()].rpartition("/")[0]
    return [whole, *source.places]


def _linked(places: list[str], root: Location) -> list[str]:
    """What links below the local ``places`` lead to, at any depth; not looked for where ``root`` holds nothing yet."""
    if not root.is_local or not os.path.isdir(root.path) or not os.listdir(root.path):
        return []
    found, seen, left = [], set[str](), [place for place in places if os.path.isdir(place)]
    while left:
        folder = os.path.realpath(left.pop())
        if folder in seen:
            continue
        seen.add(folder)
        with contextlib.suppress(OSError), os.scandir(folder) as entries:  # who reads it says why it cannot be read
            for entry in entries:
                if entry.is_symlink():
                    found.append(os.path.realpath(entry.path))
                    left.append(found[-1])
                elif entry.is_dir(follow_symlinks=False):
                    left.append(entry.path)
    return found


def _links_at(root: Location) -> list[tuple[str, str]]:
    """(link, target) of the folders in a local destination that shards, indexes or records are written into."""
    if not root.is_local or not os.path.isdir(root.path):
        return []
    found, folders = [], [root.path]
    for depth in range(_DEPTH):
        inner: list[str] = []
        for folder in folders:
            with contextlib.suppress(OSError), os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_symlink() and os.path.isdir(entry.path):
                        found.append((entry.path, os.path.realpath(entry.path)))
                    elif depth + 1 < _DEPTH and entry.is_dir(follow_symlinks=False):
                        inner.append(entry.path)
        folders = inner
    return found


def _own_shards(root: Location) -> list[str]:
    try:
        splits = read_manifest(root).splits.values() if (root / MANIFEST).exists() else ()
    except StokerError:  # damaged; whoever replaces it says so
        return []
    shards = (shard for split in splits for shard in split.shards)
    return [_resolved(shard.tar(root).url) for shard in shards if is_written_by_stoker(shard)]


def _resolved(url: str) -> str:
    place = locate(url) if not url.startswith("torchvision:") else None
    if place is None:
        return url
    return os.path.realpath(place.path) if place.is_local else f"{place.url.partition('://')[0]}://{place.path}"


def _is_inside(inner: str, outer: str) -> bool:
    return f"{inner.rstrip('/')}/".startswith(f"{outer.rstrip('/')}/")
