"""Files that are part of the package: recipes, Serve configs and cluster files, in a checkout and in a wheel alike.

A wheel carries them as the data-only packages of :data:`_PACKAGES`; in a checkout they are ``jobs/recipes``, ``serve``
and ``cluster``, which an editable install maps to the same names.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from stoker.errors import StokerError

__all__ = ["bundled_file", "bundled_files"]

_PACKAGES = {"recipes": "stoker_recipes", "serve": "stoker_serve", "cluster": "stoker_cluster"}
_SUFFIXES = {".yaml", ".sh", ".txt"}


def bundled_files() -> dict[str, Path]:
    """Every file by its name, as ``recipes/digits.yaml``, ``serve/digits.yaml`` or ``cluster/aws.yaml``; sorted."""
    return {
        f"{kind}/{path.name}": path
        for kind, package in sorted(_PACKAGES.items())
        for path in sorted(_folder(package).iterdir())
        if path.suffix in _SUFFIXES
    }


def bundled_file(name: str) -> Path:
    """The path of one file, by its name in :func:`bundled_files`.

    Raises:
        StokerError: the package has no such file.
    """
    kind, _, file = name.partition("/")
    if kind in _PACKAGES and Path(file).suffix in _SUFFIXES and "/" not in file:
        path = _folder(_PACKAGES[kind]) / file
        if path.is_file():
            return path
    raise StokerError(f"{name}: unknown file; stoker init --list prints those that come with stoker")


def _folder(package: str) -> Path:
    found = importlib.util.find_spec(package)
    places = list(found.submodule_search_locations or ()) if found else []
    if not places:
        raise StokerError(f"the package {package} is missing; reinstall stoker")
    return Path(places[0])
