"""One rank of a simulated run, in a process of its own: python -m bench.order.rank JSON; prints what it took.

It does what a loader does before and between reads: makes the order, goes to its position, and asks for its slots'
windows as far as the steps need them, finding the shards of each piece. Nothing is read.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from bench.meter import memory_bytes, peak_memory_bytes, restart_peak_memory
from stoker.dataset.order import EpochOrder, key_of, micro_batches_of
from stoker.recipe import Data

__all__ = ["Simulated", "simulate"]


@dataclass(frozen=True)
class Simulated:
    """A rank's place in a run, and how far it goes: ``steps`` from ``from_step`` on."""

    samples: int
    shards: int
    global_batch: int
    micro_batch: int
    world_size: int
    rank: int
    epoch: int
    from_step: int
    steps: int
    seen_path: str = ""
    """int64 .npy file that the rank's samples are written to, so that ranks can be compared"""

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def simulate(run: Simulated) -> dict[str, float]:
    """Seconds to the samples of the first step, and to those of all; peak memory in MB above what imports left."""
    restart_peak_memory()
    before, began = memory_bytes(), time.perf_counter()
    data = Data(url="")
    key = key_of("sha256:simulated", "train", 0, run.epoch)
    order = EpochOrder(run.samples, run.global_batch, key, data.block_samples, data.window_blocks)
    shard_begins = np.arange(run.shards + 1, dtype=np.int64) * run.samples // run.shards
    mine = micro_batches_of(run.rank, run.world_size, run.global_batch // run.micro_batch)
    slots = range(mine.start * run.micro_batch, mine.stop * run.micro_batch)
    first = order.samples_at(run.from_step, slots)
    seek_s = time.perf_counter() - began
    taken = np.empty((run.steps, len(slots)), dtype=np.int64)
    reads = 0
    for column, slot in enumerate(slots):
        for window in order.windows(slot, run.from_step):
            for start, stop in window.pieces:
                shard, last = np.searchsorted(shard_begins, (start, stop - 1), side="right") - 1
                reads += int(last - shard) + 1
            begin = max(run.from_step, window.first_step)
            end = min(run.from_step + run.steps, window.stop_step)
            part = window.samples[begin - window.first_step : end - window.first_step]
            taken[begin - run.from_step : end - run.from_step, column] = part
            if window.stop_step >= run.from_step + run.steps:
                break
    seconds, peak_mb = time.perf_counter() - began, (peak_memory_bytes() - before) / 1e6
    if not np.array_equal(taken[0], first):
        raise RuntimeError("samples of the step after seeking differ from those of its windows")
    if run.seen_path:
        np.save(Path(run.seen_path), taken.ravel())
    return {"seek_s": seek_s, "seconds": seconds, "peak_mb": peak_mb, "reads": reads, "samples": taken.size}


if __name__ == "__main__":
    print(json.dumps(simulate(Simulated(**json.loads(sys.argv[1])))))
