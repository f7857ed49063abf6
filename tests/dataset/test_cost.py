import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.order.indexes import IndexCase, count_index_reads
from stoker.dataset.cost import Prices, Shape, Store, estimate_epoch
from stoker.dataset.format.index import IndexRow, ShardIndex
from stoker.dataset.format.manifest import Shard, Split
from stoker.dataset.format.pages import pack_index
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


def test_pages_are_estimated_where_the_indexes_do_not_fit_into_memory() -> None:
    split = split_of([10_000] * 100, sample_bytes=25_000, index_bytes=800_000)
    paged = Split(split.samples, tuple(replace(shard, page_bytes=2500) for shard in split.shards))
    roomy, narrow = Shape(64, index_cache_bytes=10**9), Shape(64, index_cache_bytes=10**6)
    assert estimate_epoch(paged, roomy) == estimate_epoch(split, roomy)
    assert estimate_epoch(split, narrow).index_bytes > 1.5 * estimate_epoch(split, narrow).data_bytes
    found = estimate_epoch(paged, narrow)
    assert found.index_bytes < 0.02 * found.data_bytes
    assert found.index_requests <= 1 + found.data_requests


@pytest.mark.parametrize(("ranks", "bound"), [(4096, 2**28), (2, 2**20), (1, 2**22)])
def test_the_estimate_of_pages_is_close_to_what_the_reader_asks_for(ranks: int, bound: int) -> None:
    case = IndexCase(64_000 * ranks, 64 * ranks, 25_000, ranks, reads=10**9)
    index = pack_index(ShardIndex.of(IndexRow(n, n, 1, 1, 1, n, f"n01440764_{n:05d}") for n in range(1000)))
    sizes = index.index_bytes, index.index_checksum, index.page_bytes
    split = Split(case.samples, (Shard("", 25_000_000, 1000, "", "", *sizes),) * case.shards)
    counted = count_index_reads(case, bound_bytes=bound)
    estimated = estimate_epoch(split, Shape(64 * ranks, ranks, index_cache_bytes=bound))
    # an upper bound: a block may begin anywhere in a page, and here it begins at one of four places
    assert counted["index_mb"] * 0.98 < estimated.index_bytes / ranks / 1e6 < 1.25 * counted["index_mb"]
    assert counted["index_requests"] * 0.95 < estimated.index_requests / ranks - 1 < 1.25 * counted["index_requests"]


def test_a_set_of_which_some_shards_have_pages_is_estimated_by_part() -> None:
    split = split_of([10_000] * 100, sample_bytes=25_000, index_bytes=800_000)
    half = Split(split.samples, tuple(replace(s, page_bytes=2500 * (n % 2)) for n, s in enumerate(split.shards)))
    narrow = Shape(64, index_cache_bytes=10**6)
    old = estimate_epoch(split, narrow).index_bytes
    assert 0.45 * old < estimate_epoch(half, narrow).index_bytes < 0.55 * old


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
