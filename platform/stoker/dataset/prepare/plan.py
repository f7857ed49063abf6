"""Which sample goes into which shard, decided from names and sizes alone, before a byte of an image is read.

Every choice is a sort by a keyed hash of the sample's name: the same on every machine and in every version of
Python and NumPy, and independent of the order in which a store lists its objects.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stoker.dataset.prepare.entries import Entries, Entry

__all__ = ["Entry", "Options", "ShardPlan", "SplitPlan", "digest", "plan_split"]

_TAR_OVERHEAD_BYTES = 2048
"""two headers, the label's block and, on average, half a block of padding for the image"""


@dataclass(frozen=True)
class Options:
    """What, besides the source, decides the bytes of the data set."""

    validation_fraction: float | None = None
    """fraction of each class that is held out, 0 to 1, where the source has no validation split; None means 0.2"""
    seed: int = 0
    shard_mb: float = 64.0
    """size that shards aim at, in MB of 10^6 bytes"""
    shard_samples: int | None = None
    """most samples a shard, if any bound"""
    shuffles: bool = True
    """over all shards of a split; without it samples stay in the order of the source"""
    limit: int | None = None
    """most samples over all splits, chosen at random, each class and split in proportion"""
    deduplicates: bool = False
    """whether of images that are the same byte for byte only one is kept"""
    image_column: str | None = None
    """of Parquet or a list, where it cannot be guessed"""
    label_column: str | None = None
    classes_file: str | None = None
    """of WebDataset tars: a file that names the classes, one a line"""
    copies: bool = False
    """whether samples of WebDataset tars go into shards of our own, instead of the tars being indexed where they lie"""
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
    def choices(self) -> tuple[object, ...]:
        """What decides the bytes of the data set, given the entries of each split."""
        cut = (self.seed, self.shard_mb, self.shard_samples, self.shuffles, self.deduplicates)
        return (*cut, *self.image_choices)

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


@dataclass(frozen=True, eq=False)
class SplitPlan:
    """The shards of a split: sample ``order[i]`` is in shard n for ``cuts[n] <= i < cuts[n + 1]``."""

    split: str
    entries: Entries
    order: NDArray[np.int64]
    cuts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.cuts) - 1

    def shards(self) -> Iterator[ShardPlan]:
        """One after another: a plan is made when its shard's turn comes, so that not all are in memory."""
        for number in range(len(self)):
            rows = self.order[self.cuts[number] : self.cuts[number + 1]]
            yield ShardPlan(self.split, number, tuple(self.entries[row] for row in rows))

    def shard_of(self) -> NDArray[np.int32]:
        """The shard of each sample in the order of ``entries``: int32 [n]."""
        found = np.empty(len(self.entries), np.int32)
        found[self.order] = np.repeat(np.arange(len(self), dtype=np.int32), np.diff(self.cuts))
        return found


def plan_split(split: str, entries: Entries, options: Options) -> SplitPlan:
    """The entries, shuffled unless told otherwise, in runs as equal in samples as can be, about ``shard_mb`` each."""
    if options.shuffles:
        order = np.argsort(entries.draws(f"shuffle:{options.seed}:{split}"), kind="stable")
    else:
        order = np.arange(len(entries), dtype=np.int64)
    total = int(entries.size.sum()) + _TAR_OVERHEAD_BYTES * len(entries)
    count = max(1, -(-total // max(1, int(options.shard_mb * 1e6))))
    if options.shard_samples:
        count = max(count, -(-len(entries) // options.shard_samples))
    count = min(count, len(entries))
    cuts = np.array([len(entries) * i // count for i in range(count + 1)], np.int64)
    return SplitPlan(split, entries, order, cuts)


def digest(*told: object) -> str:
    """A sha256 over anything that JSON can say; dataclasses are told by their fields."""
    text = json.dumps(told, default=asdict, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
