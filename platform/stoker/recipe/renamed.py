"""Renamed keys of recipes: the old names stay valid in files, overrides and stored recipes."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable
from typing import Any

from stoker.errors import RecipeError

__all__ = ["RENAMED", "current_key", "warn_of_renamed", "with_current_keys"]

logger = logging.getLogger(__name__)

RENAMED = {
    "patience_s": "storage_timeout_s",
    "workers.hang_s": "workers.stall_timeout_s",
}
"""old dotted key to the new one, in the same section"""

_warned: set[str] = set()


def current_key(key: str) -> str:
    """Return the current name of the dotted ``key``."""
    return RENAMED.get(key, key)


def with_current_keys(content: dict[str, Any]) -> dict[str, Any]:
    """Copy ``content``, the nested mapping of a recipe, with every renamed key under its new name.

    Raises:
        RecipeError: a key is given under its old and its new name.
    """
    content = copy.deepcopy(content)
    for old, new in RENAMED.items():
        *parents, last = old.split(".")
        section: Any = content
        for parent in parents:
            section = section.get(parent) if isinstance(section, dict) else None
        if not isinstance(section, dict) or last not in section:
            continue
        name = new.rpartition(".")[2]
        if name in section:
            raise RecipeError(f"{old} is the old name of {new}, and both are given; remove {old}")
        section[name] = section.pop(last)
    return content


def warn_of_renamed(keys: Iterable[str], source: str) -> None:
    """Warn about each old name among the dotted ``keys`` of ``source``, once per process."""
    for key in keys:
        if key in RENAMED and key not in _warned:
            _warned.add(key)
            logger.warning("%s: %s is now called %s; the old name still works", source, key, RENAMED[key])
