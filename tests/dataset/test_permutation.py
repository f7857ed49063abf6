import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.dataset.order import Permutation

keys = st.integers(0, 2**64 - 1)


@given(st.integers(1, 5000), keys)
def test_each_value_comes_exactly_once(size: int, key: int) -> None:
    shuffled = Permutation(size, key)(np.arange(size))
    assert sorted(shuffled.tolist()) == list(range(size))


@given(st.integers(1, 2**62), keys, st.data())
def test_inverse_finds_the_position_again_at_any_size(size: int, key: int, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, size - 1))
    shuffle = Permutation(size, key)
    assert shuffle.inverse(shuffle(position)) == position


def test_another_key_gives_another_order() -> None:
    positions = np.arange(1000)
    same = Permutation(1000, 1)(positions) == Permutation(1000, 2)(positions)
    assert same.sum() < 10


@pytest.mark.parametrize(("size", "key", "word"), [(0, 0, "size"), (2**62 + 1, 0, "size"), (5, -1, "key")])
def test_what_is_out_of_range_is_named(size: int, key: int, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Permutation(size, key)


def test_a_position_past_the_end_is_refused() -> None:
    with pytest.raises(ValueError, match=r"range\(10\), got 3 to 10"):
        Permutation(10, 7)([3, 10])
