"""Locations of the data sets of one size, on disk and in the store, passed to the process of each case."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["BATCH", "SIDE", "WORKERS", "Absent", "Place"]

SIDE, BATCH, WORKERS = 224, 64, 2
"""of each case that decodes: pixels of a crop's side, images of a batch, processes or threads of a loader"""


class Absent(Exception):
    """What a case measures is unavailable: a peer that is not installed, an option that this stoker lacks."""


@dataclass(frozen=True)
class Place:
    """``folder`` holds a folder for each format, ``bucket/prefix`` the same in the store; ``scratch`` is emptied."""

    folder: str
    bucket: str
    prefix: str
    scratch: str
    images: int

    def local(self, kind: str) -> Path:
        """The set in the format ``kind`` on disk."""
        return Path(self.folder) / kind

    def key(self, kind: str) -> str:
        """The set in the format ``kind`` in the store, as ``bucket/prefix/kind``."""
        return f"{self.bucket}/{self.prefix}/{kind}"

    def url(self, kind: str) -> str:
        return f"s3://{self.key(kind)}"

    def files(self, kind: str, ending: str) -> list[str]:
        """The names of the set's files, in order."""
        return sorted(path.name for path in self.local(kind).iterdir() if path.name.endswith(ending))

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Place:
        return cls(**json.loads(text))
