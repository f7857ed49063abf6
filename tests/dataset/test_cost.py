import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stoker.dataset.cost import Prices, Shape, Store, estimate_epoch
from stoker.dataset.format.manifest import Shard, Split
from stoker.dataset.order import EpochOrder


def split_of(samples: list[int], *, sample_bytes: int = 1000, index_bytes: int = 50) -> Split:
    shards = tuple(
        Shard(f"{n}.tar", count * sample_bytes, count, "", "", index_bytes, "") for n, count in enumerate(samples)
    )
    return Split(sum(samples), shards)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=8), st.integers(1, 20), st.integers(1, 12), st.integers(0, 99))
def test_no_order_reads_more_often_than_estimated_and_an_estimate_is_close(
    shards: list[int], block: int, batch: int, key: int
) -> None:
    split = split_of(shards)
    begins = list(itertools.accumulate(shards))
    order = EpochOrder(split.samples, batch, key, block, 3, "pad")
    pieces = [piece for slot in range(batch) for window in order.windows(slot) for piece in window.pieces]
    reads = sum(1 + sum(first < begin < stop for begin in begins) for first, stop in pieces)
    estimated = estimate_epoch(split, Shape(batch, block_samples=block)).data_requests
    assert reads <= estimated <= reads + batch + len(shards)


def test_each_sample_is_read_once_whatever_the_number_of_ranks() -> None:
    split = split_of([100] * 10)
    costs = [estimate_epoch(split, Shape(64, ranks)) for ranks in (1, 2, 8)]
    assert {cost.data_bytes for cost in costs} == {1_000_000}
    assert len({cost.data_requests for cost in costs}) == 1


def test_a_rank_reads_an_index_again_where_indexes_outgrow_their_cache() -> None:
    split = split_of([100] * 1000, index_bytes=1000)
    roomy = estimate_epoch(split, Shape(64, index_cache_bytes=10**9))
    narrow = estimate_epoch(split, Shape(64, index_cache_bytes=10**5))
    assert roomy.index_requests <= 1001
    assert narrow.index_requests > 4 * roomy.index_requests


def test_time_is_that_of_the_slowest_of_bandwidth_latency_and_training() -> None:
    split = split_of([1000] * 10)
    by_bandwidth = estimate_epoch(split, Shape(64), Store(bandwidth_mb_s=1.0, latency_ms=0.0))
    by_latency = estimate_epoch(split, Shape(64, read_threads=1), Store(bandwidth_mb_s=1e6, latency_ms=10.0))
    by_training = estimate_epoch(split, Shape(64, images_per_s=10.0), Store(1e6, 0.0))
    assert by_bandwidth.seconds == pytest.approx(by_bandwidth.bytes / 1e6)
    assert by_latency.seconds == pytest.approx(by_latency.requests / 100)
    assert by_training.seconds == pytest.approx(1000.0)


def test_cost_is_requests_and_bytes_at_their_prices() -> None:
    cost = estimate_epoch(split_of([1000]), Shape(8), prices=Prices(million_requests=1e6, gb=1e9))
    assert cost.cost == pytest.approx(cost.requests + cost.bytes)


def test_sizes_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        estimate_epoch(split_of([10]), Shape(0))
