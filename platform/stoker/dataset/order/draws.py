"""Counter-based random numbers: a pure function of key and counter, the same on any rank, thread and machine."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["key_of", "uniform"]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def key_of(*parts: str | int) -> int:
    """Derive a 64-bit key from names and numbers; different parts give unrelated keys."""
    joined = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(joined.encode(), digest_size=8).digest(), "little")


def uniform(key: int, counters: ArrayLike, count: int) -> NDArray[np.float64]:
    """Draw ``count`` uniform numbers in [0, 1) for each of ``counters`` (int64 [n], at least 0): float64 [n, count].

    SplitMix64 (Steele, Lea and Flood, *Fast Splittable Pseudorandom Number Generators*, OOPSLA 2014), one stream a
    counter.
    """
    given = np.asarray(counters, dtype=np.int64).astype(np.uint64)
    with np.errstate(over="ignore"):
        streams = _mix(_mix(given + np.uint64(key)) + np.uint64(key))
        steps = _GOLDEN * np.arange(1, count + 1, dtype=np.uint64)
        bits = _mix(streams[:, None] + steps[None, :])
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)
