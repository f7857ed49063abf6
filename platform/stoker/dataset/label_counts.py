"""Count the samples of a split by label from its indexes; no sample is read.

Labels are in the index of each shard and nowhere in the manifest, so an exact count reads every index once: some 80
bytes a sample, shared by the ranks. Where all indexes fit into the reader's memory, those that a rank read stay there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from stoker.dataset.samples import ShardReader
from stoker.errors import DatasetError

__all__ = ["LabelCounts", "label_counts"]

_AHEAD = 16
"""shards a thread that are asked for at once: a million would fill the memory"""

LabelCounts = NDArray[np.int64]
"""int64 [classes]: samples of each label"""


def label_counts(reader: ShardReader, shards: Sequence[int], classes: int, *, threads: int) -> Iterator[LabelCounts]:
    """The samples of each label in each of ``shards``, in order, read by ``threads`` at once.

    Raises:
        StorageError, DatasetError: an index cannot be read, is missing or damaged, or holds a label that is no class.
    """

    def of(shard: int) -> LabelCounts:
        labels = reader.labels(shard)
        if len(wrong := labels[(labels < 0) | (labels >= classes)]):
            raise DatasetError(
                f"shard {shard} of the split has a sample with label {wrong[0]}, but labels are 0 to {classes - 1}; "
                "prepare the data set again"
            )
        return np.bincount(labels, minlength=classes)

    with ThreadPoolExecutor(threads, thread_name_prefix="stoker-labels") as pool:
        for first in range(0, len(shards), _AHEAD * threads):
            yield from pool.map(of, shards[first : first + _AHEAD * threads])
