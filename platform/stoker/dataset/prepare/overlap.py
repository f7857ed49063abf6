"""Refuse a destination that overlaps the source: preparing would overwrite or list again what it reads."""

from __future__ import annotations

import os
import re
from urllib.parse import parse_qs, urlsplit

from stoker.dataset.format.manifest import MANIFEST, read_manifest
from stoker.dataset.prepare.destination import is_written_by_stoker
from stoker.dataset.prepare.sources import Source
from stoker.errors import DatasetError, StokerError
from stoker.storage import Location, locate

__all__ = ["refuse_overlap"]

_GLOB = re.compile(r"[*?\[]")


def refuse_overlap(source: Source, root: Location) -> None:
    """Check that neither ``root`` is inside ``source`` nor anything of ``source`` inside ``root``, links resolved.

    Tars may be indexed where they are: then only a data set at ``root`` that consists of them is refused, because its
    shards would be deleted to make room.

    Raises:
        DatasetError: they overlap.
    """
    own, places = _resolved(root.url), [_resolved(url) for url in _places(source)]
    if source.is_indexed:
        if any(_is_inside(shard, place) for shard in _own_shards(root) for place in places):
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


def _places(source: Source) -> list[str]:
    """URLs of the files and folders that ``source`` is read from."""
    parts = urlsplit(source.url)
    if parts.scheme == "torchvision":
        return [url for values in parse_qs(parts.query).values() for url in values if os.path.exists(url)]
    whole = source.url
    if pattern := _GLOB.search(whole):
        whole = whole[: pattern.start()].rpartition("/")[0]
    return [whole, *source.places]


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
