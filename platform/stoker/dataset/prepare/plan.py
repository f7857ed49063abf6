"""Which sample goes into which shard, decided from names and sizes alone, before a byte of an image is read.

Every choice is a sort by a keyed hash of the sample's name: the same on every machine and in every version of
Python and NumPy, and independent of the order in which a store lists its objects.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import xxhash

__all__ = ["Entry", "Options", "ShardPlan", "cut_shards", "digest", "held_out", "unique_keys"]

_TAR_OVERHEAD_BYTES = 2048
"""two headers, the label's block and, on average, half a block of padding for the image"""
_LONGEST_KEY = 90
"""in bytes: with its extension it fits the name field of a ustar header (POSIX.1-1988), 100 bytes"""


@dataclass(frozen=True, slots=True)
class Entry:
    """One sample as a source lists it.

    ``key`` names it in the data set; ``path`` finds it in the source; ``stamp`` changes when the file is written again.
    """

    key: str
    label: int
    path: str
    bytes: int
    stamp: str


@dataclass(frozen=True)
class Options:
    """What, besides the source, decides the bytes of the data set."""

    validation_share: float | None = None
    """part of each class that is held out, 0 to 1, where the source has no validation split; None means 0.2"""
    seed: int = 0
    shard_mb: float = 64.0
    """size that shards aim at, in MB of 10^6 bytes"""
    shard_samples: int | None = None
    """most samples a shard, if any bound"""
    on_bad: Literal["fail", "skip"] = "fail"
    checks: bool = True
    """whether every image is decoded whole, instead of its header read"""
    jpeg: Literal["marked", "original"] = "marked"
    """baseline JPEGs rewritten without loss with restart markers, or stored as they are"""
    metadata: Literal["keep", "drop"] = "keep"
    """of the images, such as EXIF and colour profiles"""
    longest_side: int | None = None
    """in pixels; images with a longer one are scaled down and encoded anew"""
    quality: int = 90
    """of JPEGs that are encoded anew, 1 to 100"""

    @property
    def image_choices(self) -> tuple[object, ...]:
        """What decides the bytes that an image becomes."""
        return self.checks, self.jpeg, self.metadata, self.longest_side, self.quality


@dataclass(frozen=True)
class ShardPlan:
    """Shard ``number`` of ``split`` and the entries that it will hold, in order."""

    split: str
    number: int
    entries: tuple[Entry, ...]

    @property
    def name(self) -> str:
        return f"{self.split}/{self.number:06d}"


def cut_shards(split: str, entries: Sequence[Entry], options: Options) -> list[ShardPlan]:
    """The shuffled entries in runs as equal in samples as can be, about ``shard_mb`` each."""
    shuffled = sorted(entries, key=lambda entry: _draw(f"shuffle:{options.seed}:{split}:{entry.key}"))
    total = sum(entry.bytes + _TAR_OVERHEAD_BYTES for entry in entries)
    count = max(1, -(-total // max(1, int(options.shard_mb * 1e6))))
    if options.shard_samples:
        count = max(count, -(-len(entries) // options.shard_samples))
    count = min(count, len(entries))
    cuts = [len(entries) * i // count for i in range(count + 1)]
    return [ShardPlan(split, i, tuple(shuffled[a:b])) for i, (a, b) in enumerate(itertools.pairwise(cuts))]


def held_out(paths: Sequence[str], share: float, seed: int) -> set[str]:
    """The part of one class's files that is held out: ``share`` of them, at least one and never all."""
    if share <= 0 or len(paths) < 2:
        return set()
    count = min(max(1, round(share * len(paths))), len(paths) - 1)
    return set(sorted(paths, key=lambda path: _draw(f"hold-out:{seed}:{path}"))[:count])


def unique_keys(paths: Iterable[str]) -> list[str]:
    """A key for each path: without extension and dots (a WebDataset key ends at the first), short, no two alike."""
    seen: set[str] = set()
    keys = []
    for path in paths:
        folder, _, file = path.rpartition("/")
        stem = file.rpartition(".")[0] or file
        key = (f"{folder}/{stem}" if folder else stem).replace(".", "_")
        if len(key.encode()) > _LONGEST_KEY or key in seen:
            short = key.encode()[: _LONGEST_KEY - 17].decode(errors="ignore")
            key = f"{short}-{xxhash.xxh3_64_hexdigest(path.encode())}"
        seen.add(key)
        keys.append(key)
    return keys


def digest(*told: object) -> str:
    """A sha256 over anything that JSON can say; dataclasses are told by their fields."""
    text = json.dumps(told, default=asdict, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _draw(text: str) -> bytes:
    return xxhash.xxh3_128_digest(text.encode())
