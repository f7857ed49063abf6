"""Tell what stoker wrote in a destination from what it did not: only the former is ever overwritten or deleted."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from stoker.dataset.format.manifest import MANIFEST, read_manifest
from stoker.errors import DatasetError, StokerError
from stoker.storage import Location

__all__ = ["delete_staged", "refuse_foreign_tars"]

_STAGED = re.compile(r"(plan|owner)\.json|hashes/\d+\.json|spill/(pass-\d+/)?\d+\.(bin|json)|[^/]+/\d{6,}\.json")
_SHARD = re.compile(r"\d{6,}\.tar")


def delete_staged(build: Location) -> None:
    """Delete what preparations staged below ``build``, and the folder if it holds nothing else."""
    found = build.find()
    staged = [path for path in found if _STAGED.fullmatch(path)]
    if len(staged) == len(found):
        build.delete()
        return
    for path in staged:
        (build / path).delete()


def refuse_foreign_tars(root: Location, splits: Iterable[str], prepared: dict[str, Any], plan: dict[str, Any]) -> None:
    """Check that no tar with the name of a shard lies where the shards of ``splits`` will, unless stoker wrote it.

    ``prepared`` and ``plan`` are the records of the data set that is at ``root``, and of an unfinished one.

    Raises:
        DatasetError: one does; names it.
    """
    begun = plan.get("folders") if isinstance(plan.get("folders"), list) else None
    if plan and begun is None and not plan.get("is_indexed"):
        return  # of an earlier version, which names no folders
    ours: set[str] = set()
    if not prepared.get("is_indexed") and (root / MANIFEST).exists():
        try:
            manifest = read_manifest(root)
        except StokerError:  # damaged; that the folders are its own is all that is known
            return
        ours = {shard.path for split in manifest.splits.values() for shard in split.shards}
    for split in splits:
        if split in (begun or ()):
            continue
        for name in (root / split).children():
            if _SHARD.fullmatch(name) and f"{split}/{name}" not in ours:
                raise DatasetError(
                    f"{root / split / name} is a tar that stoker did not write, in the place of a shard; choose "
                    "another destination, or move it away"
                )
