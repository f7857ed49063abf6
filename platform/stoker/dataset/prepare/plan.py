"""Assign samples to shards from names and sizes alone, before any image is read.

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
    """What determines the bytes of the data set, apart from the source."""

    validation_fraction: float | None = None
    """fraction of each class that is held out, 0 to 1, where the source has no validation split; None means 0.2"""
    seed: int = 0
    shard_mb: float = 64.0
    """target size of a shard, in MB of 10^6 bytes"""
    shard_samples: int | None = None
    """most samples in a shard; None for no bound"""
    shuffles: bool = True
    """over all shards of a split; without it samples stay in the order of the source"""
    limit: int | None = None
    """most samples over all splits, chosen at random, each class and split in proportion"""
    deduplicates: bool = False
    """whether only one of several byte-identical images is kept"""
    image_column: str | None = None
    """of Parquet or a list, where it cannot be guessed"""
    label_column: str | None = None
    classes_file: str | None = None
    """file with the class names of WebDataset tars, one a line"""
    copies: bool = False
    """whether samples of WebDataset tars are copied into new shards, instead of indexing the tars in place"""
    top_folders: Literal["classes", "splits"] | None = None
    """what the folders directly in a folder of images are; None: what their names say, or refused where these do not"""
    on_bad: Literal["fail", "skip"] = "fail"
    checks: bool = True
    """whether every image is decoded in full, instead of reading its header only"""
    jpeg: Literal["marked", "original"] = "marked"
    """baseline JPEGs rewritten without loss with restart markers, or stored as they are"""
    metadata: Literal["keep", "drop"] = "keep"
    """of the images, such as EXIF and colour profiles"""
    longest_side: int | None = None
    """in pixels; larger images are scaled down and re-encoded"""
    quality: int = 90
    """of re-encoded JPEGs, 1 to 100"""
    background: str | None = None
    """#rrggbb that transparent images are composited onto; None: they are stored as they are"""

    @property
    def choices(self) -> tuple[object, ...]:
        """What determines the bytes of the data set, given the entries of each split."""
        cut = (self.seed, self.shard_mb, self.shard_samples, self.shuffles, self.deduplicates)
        return (*cut, *self.image_choices)

    @property
    def image_choices(self) -> tuple[object, ...]:
        """What determines the stored bytes of an image.

        A data set that was prepared before there was a background is recognised by the same choices as then.
        """
        choices = (self.checks, self.jpeg, self.metadata, self.longest_side, self.quality)
        return choices if self.background is None else (*choices, self.background)


@dataclass(frozen=True)
class ShardPlan:
    """Shard ``number`` of ``split`` and its entries, in order."""

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
        """Generate the plans lazily, so that not all are in memory."""
        for number in range(len(self)):
            rows = self.order[self.cuts[number] : self.cuts[number + 1]]
            yield ShardPlan(self.split, number, tuple(self.entries[row] for row in rows))

    def shard_of(self) -> NDArray[np.int32]:
        """The shard of each sample in the order of ``entries``: int32 [n]."""
        found = np.empty(len(self.entries), np.int32)
        found[self.order] = np.repeat(np.arange(len(self), dtype=np.int32), np.diff(self.cuts))
        return found


def plan_split(split: str, entries: Entries, options: Options) -> SplitPlan:
    """Shuffle the entries if asked, and cut them into shards of about ``shard_mb``, equal in samples to within one."""
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


def digest(*values: object) -> str:
    """A sha256 over values that JSON can represent; dataclasses count by their fields."""
    text = json.dumps(values, default=asdict, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
