"""Record which samples each rank used at each step, to audit runs that were killed, resumed or resized."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from stoker.dataset import Batch

__all__ = ["Trace"]


class Trace:
    """Append to a local file which samples this rank used at each step, and when: one JSON line per step.

    The file's name is ``<nanoseconds since 1970>-<process>-of<world size>-rank<rank>.jsonl``.
    """

    def __init__(self, folder: str, rank: int, world_size: int) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        name = f"{time.time_ns()}-{os.getpid()}-of{world_size}-rank{rank}.jsonl"
        self._file = (Path(folder) / name).open("a")

    def write(self, batches: list[Batch]) -> None:
        numbers = [n for batch in batches for n in batch.numbers.tolist() if n >= 0]
        line = {"epoch": batches[0].epoch, "step": batches[0].step, "time": time.time(), "samples": numbers}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
