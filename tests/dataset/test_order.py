import itertools
from collections import Counter
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.dataset.order import EpochOrder, key_of, micro_batches_of, uniform

keys = st.integers(0, 2**64 - 1)
last = st.sampled_from(["drop", "pad"])


@st.composite
def orders(draw: st.DrawFn) -> EpochOrder:
    samples = draw(st.integers(1, 400))
    last_batch = draw(last)
    most = samples if last_batch == "drop" else samples + 20
    return EpochOrder(
        samples,
        draw(st.integers(1, most)),
        draw(keys),
        draw(st.integers(1, 40)),
        draw(st.integers(1, 6)),
        last_batch,
        draw(st.booleans()),
    )


def whole(order: EpochOrder) -> np.ndarray:
    """The samples of all steps: int64 [steps, global_batch], -1 where there is padding."""
    return table(order, range(order.global_batch))


def table(order: EpochOrder, slots: range) -> np.ndarray:
    found = np.full((order.steps, len(slots)), -1)
    for column, slot in enumerate(slots):
        for window in order.windows(slot):
            found[window.first_step : window.stop_step, column] = window.samples
    return found


@given(orders())
def test_each_sample_comes_exactly_once_an_epoch(order: EpochOrder) -> None:
    seen = Counter(whole(order).ravel().tolist())
    padding = seen.pop(-1, 0)
    assert set(seen.values()) == {1}
    if order.last_batch == "pad":
        assert len(seen) == order.samples
        assert padding == order.steps * order.global_batch - order.samples
    else:
        assert padding == 0
        assert order.samples - len(seen) == order.samples % order.global_batch


@given(orders())
def test_padding_stands_only_in_the_last_step_after_the_samples(order: EpochOrder) -> None:
    steps = whole(order)
    assert (steps[:-1] >= 0).all()
    real = steps[-1] >= 0
    assert not (np.diff(real.astype(int)) > 0).any()


@given(st.integers(1, 8), st.integers(1, 3), st.integers(8, 12), st.integers(1, 300), keys, last, st.integers(1, 20))
def test_the_samples_of_a_step_do_not_depend_on_the_world_size(
    world: int, micro: int, micro_batches: int, more: int, key: int, last_batch: Literal["drop", "pad"], block: int
) -> None:
    total = micro * micro_batches
    order = EpochOrder(total + more, total, key, block, 3, last_batch)
    shares = [micro_batches_of(rank, world, micro_batches) for rank in range(world)]
    shared = [table(order, range(mine.start * micro, mine.stop * micro)) for mine in shares]
    assert np.array_equal(np.concatenate(shared, axis=1), whole(order))


@given(orders(), st.data())
def test_windows_from_any_step_on_are_those_of_the_whole_epoch(order: EpochOrder, data: st.DataObject) -> None:
    slot = data.draw(st.integers(0, order.global_batch - 1))
    start = data.draw(st.integers(0, order.steps - 1))
    column = np.full(order.steps, -1)
    for window in order.windows(slot, start):
        column[window.first_step : window.stop_step] = window.samples
        held = np.concatenate([np.arange(a, b) for a, b in window.pieces])
        assert sorted(held.tolist()) == sorted(window.samples.tolist())
        assert all(a // order.block == (b - 1) // order.block for a, b in window.pieces)
        assert len(window.pieces) <= order.window + 1
    assert np.array_equal(column[start:], table(order, range(slot, slot + 1))[start:, 0])


@given(orders(), st.data())
def test_a_step_that_is_sought_is_the_one_that_windows_give(order: EpochOrder, data: st.DataObject) -> None:
    step = data.draw(st.integers(0, order.steps - 1))
    assert np.array_equal(order.samples_at(step, range(order.global_batch)), whole(order)[step])


def test_a_slot_reads_whole_blocks() -> None:
    order = EpochOrder(100_000, 64, 5, block=16, window=4)
    reads = sum(len(w.pieces) for slot in range(64) for w in order.windows(slot))
    assert reads <= 100_000 / 16 + 2 * 64


def test_every_sample_is_dropped_in_some_epoch_and_used_in_others() -> None:
    """The short last block is placed by the key, so no sample is left out for ever."""
    used = Counter()
    for epoch in range(60):
        used.update(whole(EpochOrder(103, 10, key_of("f", 0, epoch), block=4, window=2)).ravel().tolist())
    assert len(used) == 103
    assert max(used.values()) <= 60
    assert min(used.values()) > 30


def test_a_global_batch_mixes_distant_places() -> None:
    step = EpochOrder(100_000, 64, 9).samples_at(100, range(64))
    assert np.diff(np.sort(step)).max() < 15_000
    assert len(set((step // 10_000).tolist())) == 10


def test_another_epoch_or_seed_gives_another_order() -> None:
    tables = [whole(EpochOrder(1000, 10, key_of("print", seed, epoch))) for seed, epoch in [(0, 0), (0, 1), (1, 0)]]
    assert all((a == b).mean() < 0.02 for a, b in itertools.pairwise(tables))


def test_the_order_is_the_same_in_every_version() -> None:
    """Stored runs rely on it: these numbers never change."""
    order = EpochOrder(1000, 8, key_of("sha256:0", "train", 7, 3), block=16, window=4)
    assert order.samples_at(0, range(8)).tolist() == PINNED_FIRST
    assert order.samples_at(order.steps - 1, range(8)).tolist() == PINNED_LAST


PINNED_FIRST = [329, 110, 634, 924, 805, 706, 663, 265]
PINNED_LAST = [202, 313, 914, 897, 955, 758, 178, 980]


@pytest.mark.parametrize(("micro_batches", "world", "shares"), [(8, 3, [3, 3, 2]), (4, 4, [1] * 4), (5, 1, [5])])
def test_ranks_share_micro_batches_as_evenly_as_they_divide(micro_batches: int, world: int, shares: list[int]) -> None:
    assert [len(micro_batches_of(rank, world, micro_batches)) for rank in range(world)] == shares


def test_more_ranks_than_micro_batches_are_refused() -> None:
    with pytest.raises(ValueError, match="2 micro-batches cannot be shared by 3 ranks"):
        micro_batches_of(0, 3, 2)


def test_a_global_batch_larger_than_the_split_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"set data\.last_batch to pad"):
        EpochOrder(10, 11, 0)


@given(keys, st.lists(st.integers(0, 2**62), min_size=1, max_size=20), st.integers(1, 30))
def test_a_draw_depends_on_its_key_and_counter_alone(key: int, counters: list[int], count: int) -> None:
    together = uniform(key, counters, count)
    assert ((together >= 0) & (together < 1)).all()
    assert all(np.array_equal(uniform(key, [c], count)[0], row) for c, row in zip(counters, together, strict=True))


def test_draws_are_uniform() -> None:
    draws = uniform(3, np.arange(20_000), 4)
    assert np.abs(draws.mean(axis=0) - 0.5).max() < 0.01
    assert np.abs(np.corrcoef(draws.T) - np.eye(4)).max() < 0.03
