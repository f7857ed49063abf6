"""The interface of a decoder, for any kind of sample.

The loader allocates a micro-batch with ``empty``, splits it between its decode threads, and each thread calls
``decode`` for its part. A decoder must therefore hold no state that a call changes, and its output may depend on a
sample's bytes and draws only: this makes a run repeatable on any number of ranks and threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from stoker.dataset.samples import Sample
from stoker.dataset.undecodable import UndecodableSample

__all__ = ["Decoder", "UndecodableSample"]


class Decoder(Protocol):
    """Decodes samples into their places in a batch; must be safe to call from many threads at once."""

    draws: int
    """uniform random numbers per sample; 0 if it needs none"""

    def empty(self, count: int) -> Tensor:
        """Allocate a tensor [count, ...] for a micro-batch of ``count`` samples; its content is undefined."""
        ...

    def decode(
        self, samples: Sequence[Sample], draws: NDArray[np.float64], out: Tensor
    ) -> dict[int, UndecodableSample]:
        """Decode ``samples[i]`` into ``out[i]``.

        ``draws``: float64 [len(samples), self.draws] in [0, 1). Returns the errors of samples that cannot
        be decoded, by their place in ``samples``; the content of these places is then undefined.
        """
        ...
