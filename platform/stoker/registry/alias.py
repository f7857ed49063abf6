"""An alias: a pointer to a version with the history of its moves, moved by compare-and-swap.

``<name>/aliases/<alias>.json`` holds ``{"version": n, "history": [{"version", "moved", "is_rollback"?}, …]}``, the
oldest move first. A rollback is recorded as a move that says so: it undoes the moves after its version, so a second
rollback leads further back and never forward again.
"""

from __future__ import annotations

import datetime
import json
import logging
from collections.abc import Callable, Collection
from typing import Any

from stoker.errors import ModelError
from stoker.storage import Conflict, Location
from stoker.storage.location import version_of

__all__ = ["AliasFile", "now"]

logger = logging.getLogger(__name__)

_SWAPS = 20

Move = dict[str, Any]


class AliasFile:
    """The alias at ``place``; ``reference`` is its name in messages, ``digits@production``."""

    def __init__(self, place: Location, reference: str) -> None:
        self._place, self._reference = place, reference

    def history(self) -> list[Move]:
        """Each move, oldest first; empty if the alias does not exist.

        Raises:
            ModelError: the file is damaged.
        """
        found = self._place.version()
        return self._parse(found[0]) if found else []

    def move(self, version: int, exists: Callable[[], bool]) -> None:
        """Point the alias at ``version``. ``exists`` is asked again afterwards, because a deletion may be under way.

        Raises:
            ModelError: others keep moving it, or the version was deleted in between.
        """
        before, written = self._append(lambda _: {"version": version, "moved": now()}, repairs=True)
        if exists():
            return
        if before is None:
            self._place.delete()
        else:
            self._undo(before, written)
        raise ModelError(f"alias {self._reference}: version {version} was deleted at the same time; choose another one")

    def roll_back(self, existing: Collection[int]) -> int:
        """Point the alias at the version before and return it; versions that are not ``existing`` are passed over.

        Raises:
            ModelError: the alias has no earlier version, or others keep moving it.
        """

        def choose(history: list[Move]) -> Move:
            *before, current = _stack(history)
            earlier = [version for version in before if version in existing]
            if not earlier:
                raise ModelError(f"alias {self._reference}: no version before {current} in its history; set it instead")
            return {"version": earlier[-1], "moved": now(), "is_rollback": True}

        _, content = self._append(choose)
        return int(self._parse(content)[-1]["version"])

    def _append(self, choose: Callable[[list[Move]], Move], *, repairs: bool = False) -> tuple[bytes | None, bytes]:
        """Append the move that ``choose`` makes of the history; returns the content before and the one written.

        A concurrent move is kept, and ``choose`` is asked again. ``repairs``: a damaged file is replaced.
        """
        for _ in range(_SWAPS):
            found = self._place.version()
            is_damaged = False
            try:
                history = self._parse(found[0]) if found else []
            except ModelError:
                if not repairs:
                    raise
                history, is_damaged = [], True
            move = choose(history)
            content = json.dumps({"version": move["version"], "history": [*history, move]}, indent=1).encode()
            try:
                self._place.swap(content, found[1] if found else None)
            except Conflict:
                continue
            if is_damaged:
                logger.warning(
                    "%s was damaged and is replaced: the history of %s starts anew with version %d",
                    self._place,
                    self._reference,
                    move["version"],
                )
            return (found[0] if found else None), content
        raise ModelError(f"alias {self._reference}: others keep moving it; try again")

    def _undo(self, before: bytes, written: bytes) -> None:
        try:
            self._place.swap(before, version_of(written))
        except Conflict:
            return  # moved again since, by somebody who knew better

    def _parse(self, content: bytes) -> list[Move]:
        try:
            history = [{**entry, "version": _number(entry["version"])} for entry in json.loads(content)["history"]]
            if history and all(isinstance(entry["moved"], str) for entry in history):
                return history
        except (ValueError, KeyError, TypeError, RecursionError):
            pass
        name, _, alias = self._reference.partition("@")
        raise ModelError(
            f"{self._place}: damaged; set the alias {self._reference} again: stoker models alias {name}@VERSION {alias}"
        )


def _number(value: Any) -> int:
    """A version's number; older files may have it as text."""
    number = int(value) if isinstance(value, str) else value
    if type(number) is not int or number < 1:
        raise ValueError(f"{value!r} is not a version")
    return number


def _stack(history: list[Move]) -> list[int]:
    """The versions that rollbacks lead through, the current one last."""
    stack: list[int] = []
    for move in history:
        version = int(move["version"])
        if move.get("is_rollback") and version in stack:
            while stack[-1] != version:
                stack.pop()
        elif not stack or version != stack[-1]:
            stack.append(version)
    return stack


def now() -> str:
    """ISO 8601 in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
