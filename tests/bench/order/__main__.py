"""make bench-order: the order of 10^9 samples in 10^6 shards over 4,096 ranks, of which a few are simulated.

Then the index bytes that a rank reads beside its samples, with pages and with whole indexes."""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from bench.order.indexes import CASES, count_index_reads
from bench.order.rank import Simulated
from bench.report import Figure, Measures, closing_line, figures_table, rounded, table
from stoker.dataset.order import EpochOrder, key_of

__all__ = ["index_figures", "main", "order_figures", "simulated_ranks", "times_not_once"]

_SAMPLES, _SHARDS, _RANKS = 10**9, 10**6, 4096
_MICRO_BATCH = 64
_WHOLE = 10**6
"""samples of the smaller order that is checked completely"""
_INDEX_COLUMNS = {
    "reads": "reads",
    "index_requests": "index requests",
    "index_mb": "index MB",
    "percent": "% of the data",
    "held_mb": "held MB",
}
_COLUMNS = {"seek_s": "seek s", "seconds": "all s", "peak_mb": "peak MB", "reads": "reads", "samples": "samples"}


def main(arguments: Sequence[str]) -> int:
    """Simulate ranks; 0 unless the order is wrong."""
    parser = argparse.ArgumentParser(prog="python -m bench.order", description=__doc__)
    parser.add_argument(
        "--ranks",
        type=int,
        default=6,
        help="number of simulated ranks: first, middle, last, then random ones (default 6)",
    )
    parser.add_argument("--steps", type=int, default=300, help="steps of each rank (default 300)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the position and the random ranks (default 0)")
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown")
    given = parser.parse_args(arguments)
    rows, found, seen = [], [], []
    with tempfile.TemporaryDirectory(prefix="stoker-bench-order-") as folder:
        for run in simulated_ranks(given.ranks, given.steps, given.seed, Path(folder)):
            done = subprocess.run(
                [sys.executable, "-m", "bench.order.rank", run.to_json()], check=True, stdout=subprocess.PIPE, text=True
            )
            found.append(json.loads(done.stdout))
            seen.append(np.load(run.seen_path))
            values = {name: rounded(value) for name, value in found[-1].items()}
            place = {"epoch": run.epoch, "from_step": run.from_step}
            print(json.dumps({"case": f"rank {run.rank}", **place, **values}), flush=True)
            rows.append((f"{run.rank}", *(f"{values[name]:g}" for name in _COLUMNS)))
    every = np.concatenate(seen)
    figures = order_figures(found, len(every) - len(np.unique(every)), times_not_once(_WHOLE))
    print(f"\n{table(('rank', *_COLUMNS.values()), rows, is_markdown=given.markdown)}\n")
    indexes, rows = {}, []
    for case in CASES:
        counted, whole = count_index_reads(case), count_index_reads(replace(case, is_paged=False))
        indexes[case.name] = counted
        print(
            json.dumps({"case": case.name, **asdict(case), **{k: rounded(v) for k, v in counted.items()}}), flush=True
        )
        values = (*(counted[name] for name in _INDEX_COLUMNS), whole["percent"])
        rows.append((case.name, *(f"{rounded(value):g}" for value in values)))
    head = ("data set", *_INDEX_COLUMNS.values(), "%, whole indexes")
    print(f"\n{table(head, rows, is_markdown=given.markdown)}\n")
    figures += index_figures(indexes)
    print(f"{figures_table(figures, is_markdown=given.markdown)}\n")
    print(closing_line("order", figures), flush=True)
    return 1 if any(figure.bar == 0 and figure.is_missed for figure in figures) else 0


def simulated_ranks(count: int, steps: int, seed: int, folder: Path) -> Iterator[Simulated]:
    """The first, the middle and the last rank and random others, all at one random position of the run."""
    draw = random.Random(seed)
    global_batch = _RANKS * _MICRO_BATCH
    epoch, from_step = draw.randrange(90), draw.randrange(_SAMPLES // global_batch - steps)
    others = draw.sample([rank for rank in range(1, _RANKS - 1) if rank != _RANKS // 2], max(0, count - 3))
    for rank in [0, _RANKS // 2, _RANKS - 1, *others][:count]:
        path = str(folder / f"{rank}.npy")
        yield Simulated(
            _SAMPLES, _SHARDS, global_batch, _MICRO_BATCH, _RANKS, rank, epoch, from_step, steps, path
        )  # fmt: skip


def times_not_once(samples: int) -> int:
    """Samples of an epoch of a smaller order that do not come exactly once."""
    order = EpochOrder(samples, 1024, key_of("bench", samples), last_batch="pad")
    taken = np.concatenate([window.samples for slot in range(1024) for window in order.windows(slot)])
    return int((np.bincount(taken, minlength=samples) != 1).sum())


def order_figures(found: Sequence[Measures], repeated: int, not_once: int) -> list[Figure]:
    """The worst rank against the bars; a sample that comes twice or not at all is no missed bar but a broken order."""
    return [
        Figure("peak_mb_a_rank", max(one["peak_mb"] for one in found), 100.0, "below"),
        Figure("seek_s_a_rank", max(one["seek_s"] for one in found), 1.0, "below"),
        Figure("order_and_seek_s_a_rank", max(one["seconds"] for one in found), 1.0, "below"),
        Figure("samples_on_two_ranks", repeated, 0.0, "at most"),
        Figure("samples_not_once_of_a_million", not_once, 0.0, "at most"),
    ]


def index_figures(counted: Mapping[str, Measures]) -> list[Figure]:
    """Bytes of indexes per 100 bytes of samples, for each data set."""
    return [Figure(f"index_percent_{name}", one["percent"], 2.0, "at most") for name, one in counted.items()]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
