"""Locations of the data set, runs and logs, passed to the process of each case."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["CHECKOUT", "Place"]

CHECKOUT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Place:
    """``folder`` is the benchmark's own on disk; ``data`` is the prepared set and ``storage`` where runs go, as URLs
    (empty where no case needs the store)."""

    folder: str
    data: str = ""
    storage: str = ""

    @property
    def logs(self) -> Path:
        return Path(self.folder) / "logs"

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Place:
        return cls(**json.loads(text))
