"""What exists in the registry, told by the names of its objects alone: one listing request, and nothing is read."""

from __future__ import annotations

import re
from dataclasses import dataclass

from stoker.storage import Location

__all__ = ["Contents", "contents_of"]

_VERSION = re.compile(r"([0-9]+)/model\.json")
_ALIAS = re.compile(r"aliases/([^/]+)\.json")


@dataclass(frozen=True)
class Contents:
    """What one model has: the numbers of its versions, ascending, and the names of its aliases, sorted."""

    versions: tuple[int, ...]
    aliases: tuple[str, ...]


def contents_of(models: Location, name: str | None = None) -> dict[str, Contents]:
    """The contents of each model below ``models`` that has a version, or of ``name`` alone, by name, sorted.

    A store answers with up to 1,000 objects a request.

    Raises:
        StorageError: the store cannot be listed.
    """
    below = f"{name}/" if name else ""
    paths = [f"{below}{path}" for path in (models / name if name else models).find()]
    found: dict[str, tuple[list[int], list[str]]] = {}
    for path in paths:
        model, _, rest = path.partition("/")
        versions, aliases = found.setdefault(model, ([], []))
        if version := _VERSION.fullmatch(rest):
            versions.append(int(version[1]))
        elif alias := _ALIAS.fullmatch(rest):
            aliases.append(alias[1])
    return {
        model: Contents(tuple(sorted(versions)), tuple(sorted(aliases)))
        for model, (versions, aliases) in sorted(found.items())
        if versions
    }
