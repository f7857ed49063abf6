from dataclasses import replace
from pathlib import Path

import numpy as np

from bench.order.__main__ import index_figures, order_figures, simulated_ranks, times_not_once
from bench.order.indexes import CASES, count_index_reads
from bench.order.rank import simulate


def test_simulated_ranks_share_no_sample(tmp_path: Path) -> None:
    seen = []
    for run in simulated_ranks(3, 300, 0, tmp_path):
        short = replace(run, samples=10**6, shards=1000, global_batch=1024, world_size=16, steps=3, from_step=900)
        simulate(replace(short, rank=run.rank % 16))
        seen.append(np.load(run.seen_path))
    every = np.concatenate(seen[:1] + seen[2:])  # ranks 0 and 15; 2048 is 0 again
    assert len(every) == 2 * 3 * 64
    assert len(np.unique(every)) == len(every)


def test_each_sample_of_a_whole_epoch_comes_once() -> None:
    assert times_not_once(20_000) == 0


def test_the_worst_rank_counts() -> None:
    ranks = [{"peak_mb": 9.0, "seek_s": 0.1, "seconds": 0.5}, {"peak_mb": 8.0, "seek_s": 0.2, "seconds": 1.5}]
    missed = [figure.name for figure in order_figures(ranks, repeated=0, not_once=3) if figure.is_missed]
    assert missed == ["order_and_seek_s_a_rank", "samples_not_once_of_a_million"]


def test_a_rank_reads_at_most_2_percent_of_indexes_beside_a_billion_samples() -> None:
    for case in CASES:
        counted = count_index_reads(replace(case, reads=1000))
        assert counted["reads"] >= 1000
        assert 0 < counted["percent"] <= 2, case.name
        assert counted["index_requests"] <= counted["reads"]


def test_whole_indexes_would_be_more_and_are_counted_by_the_same_policy() -> None:
    case = replace(CASES[3], reads=500)
    assert count_index_reads(replace(case, is_paged=False))["percent"] > 15


def test_indexes_that_fit_into_memory_are_counted_once() -> None:
    case = replace(CASES[0], samples=64_000, shards=64, ranks=2)
    counted = count_index_reads(case)
    assert counted["index_requests"] == 64


def test_a_data_set_over_2_percent_misses_its_bar() -> None:
    found = index_figures({"small": {"percent": 2.0}, "large": {"percent": 2.1}})
    assert [figure.name for figure in found if figure.is_missed] == ["index_percent_large"]
