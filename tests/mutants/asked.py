"""What of a module is tried."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Asked"]


@dataclass(frozen=True)
class Asked:
    """``most`` mutants at random (0 for all), or all of ``line``; of these only those ``named``, if given."""

    most: int
    line: int
    named: frozenset[str] | None
