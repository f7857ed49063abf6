from dataclasses import replace
from pathlib import Path

import numpy as np

from bench.order.__main__ import order_figures, simulated_ranks, times_not_once
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
