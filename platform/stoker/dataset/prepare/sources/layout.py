"""Tell whether the folders directly in a folder of images are classes or splits.

A model that takes splits for classes learns to tell train from test, so what is not clear is refused by name:

==================================================  ===============================================================
folders                                             are
==================================================  ===============================================================
none has a split's usual name                       classes
all have one that is understood, one is train       splits (``train``, ``Training``, ``val``, ``test`` in any case)
one has, beside others, and holds images            classes: there is a class called train, or test
one has, beside others, and holds only folders      refused
several have, beside others                         refused
others that are usual (``test_set``, ``dev``)       refused
==================================================  ===============================================================

``--top-folders classes`` or ``splits`` overrides all of this. Folders that all hold nothing but folders with the same
names are no classes either (:func:`refuse_nested`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from stoker.dataset.prepare.plan import Options
from stoker.dataset.prepare.sources.base import split_name
from stoker.errors import DatasetError
from stoker.storage import Location

__all__ = ["refuse_nested", "splits_of"]

_PREFIXES = ("images", "image", "img", "data", "seg")
_SUFFIXES = ("dataset", "data", "set", "images", "split", "folder")
_USUAL = {"dev": "validation", "eval": "validation", "evaluation": "validation", "validate": "validation"}
_UNCLEAR = frozenset({"trainval", "traintest", "holdout", "heldout"})
_TOLD = "--top-folders splits (or classes) says what they are"
_SHARED = 2
"""folders with the same names that tell splits, or folds, from classes"""


def splits_of(
    location: Location, folders: list[str], options: Options, holds_files: Callable[[str], bool]
) -> dict[str, str] | None:
    """The folder of each split by the split's name, or None if the folders are classes.

    ``holds_files(folder)``: whether there are files directly in it; asked of at most one.

    Raises:
        DatasetError: the names leave it open, two folders are the same split, or no folder is train.
    """
    if options.top_folders == "classes":
        return None
    usual = [name for name in folders if _usual_split(name) is not None]
    if options.top_folders == "splits":
        return _named(location, {name: _usual_split(name) or "" for name in usual})
    if not usual:
        return None
    understood = {name: split for name in folders if (split := split_name(name)) is not None}
    if len(understood) == len(folders) and (len(folders) > 1 or "train" in understood.values()):
        return _named(location, understood)
    if len(usual) == 1 and holds_files(usual[0]):
        return None
    others = [name for name in folders if name not in usual]
    beside = f", and {_some(others)} beside {'it' if len(usual) == 1 else 'them'}" if others else ""
    raise DatasetError(
        f"{location}: {_some(usual)} {'has' if len(usual) == 1 else 'have'} the name of a split{beside}; a split is "
        f"called train, validation or test, and only splits are beside it: rename or move what is not, or {_TOLD}"
    )


def refuse_nested(root: Location, inside: Iterable[frozenset[str] | None], folders: list[str]) -> None:
    """Refuse class folders that hold nothing but folders, all with the same names, or one that holds splits.

    ``inside``: names of the folders in each of ``folders``, None where it holds files.

    Raises:
        DatasetError: they do.
    """
    found = list(inside)
    first = found[0] if found else None
    if first and len(found) == 1 and any(_usual_split(name) for name in first):
        raise DatasetError(
            f"{root}: its only folder {folders[0]} holds {_some(sorted(first))}, of which some are splits; give "
            f"{folders[0]} itself, or say --top-folders classes"
        )
    if first is None or len(found) < _SHARED or len(first) < _SHARED or any(names != first for names in found):
        return
    raise DatasetError(
        f"{root}: its folders {_some(folders)} all hold the folders {_some(sorted(first))} and nothing else, so they "
        "are no classes; give the folder that holds the class folders, call them train, validation and test, or say "
        "--top-folders classes"
    )


def _usual_split(name: str) -> str | None:
    """The split that the name of a folder usually means; empty if it is one, but not clear which; None if none."""
    word = re.sub(r"[^a-z]+", "", name.lower())
    for prefix in _PREFIXES:
        word = word.removeprefix(prefix) or word
    for suffix in _SUFFIXES:
        word = word.removesuffix(suffix) or word
    return "" if word in _UNCLEAR else split_name(word) or _USUAL.get(word)


def _named(location: Location, split_of: dict[str, str]) -> dict[str, str]:
    named: dict[str, str] = {}
    for folder, split in split_of.items():
        if split in named:
            raise DatasetError(f"{location} has two {split} folders ({named[split]}, {folder}); keep one")
        if split:
            named[split] = folder
    if "train" not in named:
        raise DatasetError(
            f"{location} has no train folder, only {_some(list(split_of)) or 'others'}; call the folder to train on "
            "train, or say --top-folders classes if these are classes"
        )
    return named


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
