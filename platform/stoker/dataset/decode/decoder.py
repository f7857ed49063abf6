"""What the loader asks of a decoder, whatever the samples are.

The loader allots a micro-batch with ``empty``, splits it between its decode threads, and each thread calls ``decode``
for its part. A decoder therefore holds no state that a call changes, and what it makes of a sample depends on the
sample's bytes and draws alone: that is what makes a run repeatable on any number of ranks and threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from stoker.dataset.samples import Sample
from stoker.errors import DatasetError

__all__ = ["Decoder", "UndecodableSample"]


class UndecodableSample(DatasetError):
    """Bytes are not a sample that can be decoded: empty, truncated, damaged, or of another kind."""


class Decoder(Protocol):
    """Makes samples into their places in a batch; must be safe to call from many threads at once."""

    draws: int
    """uniform random numbers that a sample needs; 0 if it needs none"""

    def empty(self, count: int) -> Tensor:
        """A tensor [count, ...] for a micro-batch of ``count`` samples, its content undefined."""
        ...

    def decode(
        self, samples: Sequence[Sample], draws: NDArray[np.float64], out: Tensor
    ) -> dict[int, UndecodableSample]:
        """Write what ``samples[i]`` becomes into ``out[i]``.

        ``draws``: float64 [len(samples), self.draws] in [0, 1). Returns what is wrong with those that cannot be
        decoded, by their place in ``samples``; the content of their places is then undefined.
        """
        ...
