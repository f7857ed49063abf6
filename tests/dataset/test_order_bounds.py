"""The order at its bounds: the smallest and largest sizes, the defaults, and orders that stored runs rely on."""

from __future__ import annotations

import numpy as np
import pytest

from stoker.dataset.order import EpochOrder, Permutation

PINNED = {
    1: ([0], [0]),
    2: ([1, 0], [0, 1]),
    3: ([1, 2, 0], [0, 2, 1]),
    4: ([1, 3, 0, 2], [0, 3, 1, 2]),
    5: ([3, 4, 1, 2, 0], [2, 3, 1, 0, 4]),
}
"""by size: the orders by the keys 7 and 2**64 - 1, which never change"""


@pytest.mark.parametrize("size", PINNED)
def test_the_smallest_orders_are_the_same_in_every_version(size: int) -> None:
    found = tuple(Permutation(size, key)(np.arange(size)).tolist() for key in (7, 2**64 - 1))
    assert found == PINNED[size]


def test_the_largest_size_and_key_are_taken_and_the_next_ones_refused() -> None:
    ends = [0, 2**62 - 1]
    assert Permutation(2**62, 2**64 - 1)(ends).tolist() == [3889015522973787937, 4350778730121649164]
    with pytest.raises(ValueError, match="size"):
        Permutation(2**62 + 1, 0)
    with pytest.raises(ValueError, match="key"):
        Permutation(5, 2**64)


@pytest.mark.parametrize("positions", [[-1, 3], [-1], [0, 10], [10]])
def test_a_position_outside_is_refused_and_none_is_no_position(positions: list[int]) -> None:
    with pytest.raises(ValueError, match=r"range\(10\)"):
        Permutation(10, 7)(positions)
    assert Permutation(10, 7)([]).tolist() == []


def test_an_order_reads_blocks_of_sixteen_samples_and_windows_of_four_blocks_unless_told() -> None:
    given, told = EpochOrder(1000, 8, 5), EpochOrder(1000, 8, 5, block=16, window=4)
    assert (given.block, given.window) == (16, 4)
    assert given.samples_at(3, range(8)).tolist() == told.samples_at(3, range(8)).tolist()


@pytest.mark.parametrize("name", ["samples", "global_batch", "block", "window"])
def test_a_size_of_one_is_taken_and_of_none_refused(name: str) -> None:
    sizes = {"samples": 1, "global_batch": 1, "block": 1, "window": 1}
    assert EpochOrder(**sizes, key=0).samples_at(0, [0]).tolist() == [0]
    with pytest.raises(ValueError, match=f"{name} must be at least 1, not 0"):
        EpochOrder(**{**sizes, name: 0}, key=0)
