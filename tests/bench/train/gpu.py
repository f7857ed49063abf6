"""make bench-gpu: every figure that needs a GPU, on one, in 25 minutes.

ResNet-50 in bf16: our step, eager and compiled, with exact sums, on synthetic batches and fed from the store (CPU
decode, nvJPEG, the node's cache), compared with a plain loop, eager and compiled; whether a resumed run has the weights
of one that was not interrupted; how far a GPU's predictions are from a CPU's; synchronisations a step and memory.

Each case is a process of its own. One that fails or takes too long is reported, and the others go on.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from bench.report import Measures, closing_line, figures_table, medians, rounded, table
from bench.train.gpu_cases import GpuCase, gpu_cases, gpu_figures
from bench.train.place import CHECKOUT, Place
from bench.train.ranks import CaseFailed, run_ranks
from bench.train.sets import place_in_store
from stoker.errors import StokerError

__all__ = ["GpuBench", "main"]

logger = logging.getLogger(__name__)

_COLUMNS = {
    "images_per_s": "images/s",
    "step_ms": "step ms",
    "goodput": "goodput",
    "synchronisations": "synchronisations",
    "memory_mb": "MB",
}
_SHORTEST_CASE_S = 20.0


def main(arguments: Sequence[str]) -> int:
    """Run the cases; 0 unless one failed, 2 where there is no GPU."""
    given = _parser().parse_args(arguments)
    if not given.toy and not _has_gpu():
        print("error: no CUDA device here; bench-gpu needs one (BENCH=--toy runs its code on the CPU)", file=sys.stderr)
        return 2
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leave no store behind
    cases = [
        case
        for case in gpu_cases(is_toy=given.toy, micro=given.micro)
        if not given.only or any(text.lower() in case.name.lower() for text in given.only)
    ]
    folder = given.folder.absolute()
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder / "inductor"))  # what one case compiles, the next has
    with GpuBench(folder, 64 if given.toy else given.images, minutes=given.minutes, longest_s=given.longest_s) as bench:
        for number in range(given.rounds):
            for case in cases:
                bench.run(case, number)
    return bench.report(is_markdown=given.markdown)


class GpuBench:
    """Runs cases until ``minutes`` are over, each for ``longest_s`` seconds at most, and keeps what they found.

    The store is started when a case first needs it.
    """

    def __init__(self, folder: Path, images: int, *, minutes: float, longest_s: float) -> None:
        self._folder, self._images, self._longest_s = folder, images, longest_s
        self._end = time.monotonic() + 60 * minutes
        self._open = ExitStack()
        self._place: Place | None = None
        self._no_store = ""
        self.rounds: dict[str, list[Measures]] = {}
        self.failed: dict[str, str] = {}
        self._late: list[str] = []

    def __enter__(self) -> GpuBench:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def run(self, case: GpuCase, number: int) -> None:
        """Run ``case`` in round ``number`` (from 0), unless it failed before or there is no time."""
        if case.name in self.failed or (number and not case.is_repeated):
            return
        left = self._end - time.monotonic()
        if left < _SHORTEST_CASE_S:
            self._late.append(f"{case.name}, round {number}")
            return
        log = self._folder / "logs" / f"gpu-{''.join(c if c.isalnum() else '-' for c in case.name)}.log"
        began = time.monotonic()
        try:
            place = self._place_of(case)
            found = run_ranks(case.measure, place, case.arguments, 1, log, timeout_s=min(left, self._longest_s))
        except (CaseFailed, StokerError) as error:
            if time.monotonic() >= self._end:  # it was not given the time that it needs
                self._late.append(f"{case.name}, round {number}")
                return
            self.failed[case.name] = str(error)
            logger.info("%s: failed: %s", case.name, error)
            return
        self.rounds.setdefault(case.name, []).append(found)
        logger.info("%s: %.0f s", case.name, time.monotonic() - began)
        values = {measure: rounded(value) for measure, value in found.items() if measure != "hash"}
        print(json.dumps({"case": case.name, "round": number, **values}), flush=True)

    def _place_of(self, case: GpuCase) -> Place:
        if not case.is_fed:
            self._folder.mkdir(parents=True, exist_ok=True)
            return Place(str(self._folder))
        if self._no_store:
            raise CaseFailed(self._no_store)
        if self._place is None:
            try:
                self._place, _ = self._open.enter_context(place_in_store(self._folder, self._images))
            except Exception as error:  # whatever it is, the cases without the store still count
                self._no_store = f"no data set in a store: {error}"
                raise CaseFailed(self._no_store) from error
        return self._place

    def report(self, *, is_markdown: bool) -> int:
        """Print tables, failures and figures; 1 if a case failed."""
        rows = []
        for name, measured in self.rounds.items():
            middle = medians(measured)
            if "images_per_s" in middle:
                rows.append((name, *(f"{rounded(middle[c]):g}" if c in middle else "" for c in _COLUMNS)))
        print(f"\n{table(('case', *_COLUMNS.values()), rows, is_markdown=is_markdown)}\n")
        for name, why in self.failed.items():
            print(f"failed: {name}: {why}")
        if self._late:
            print(f"not run for want of time (--minutes): {'; '.join(self._late)}")
        figures = gpu_figures(self.rounds)
        print(f"{figures_table(figures, is_markdown=is_markdown)}\n")
        print(closing_line("gpu", figures), flush=True)
        return 1 if self.failed else 0


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.train.gpu", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each case; medians are reported (default 3)")
    parser.add_argument("--minutes", type=float, default=25, help="minutes after which it ends (default 25)")
    parser.add_argument(
        "--longest-s", type=float, default=300, help="seconds after which a case has failed (default 300)"
    )
    parser.add_argument("--images", type=int, default=8192, help="images of the set in the store (default 8192)")
    parser.add_argument("--micro", type=int, default=256, help="images per step (default 256)")
    parser.add_argument(
        "--only", action="append", default=[], metavar="TEXT", help="run cases whose name contains TEXT"
    )
    parser.add_argument("--toy", action="store_true", help="a tiny model on the CPU, to check that the code runs")
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown, for docs/benchmarks.md")
    parser.add_argument("--folder", type=Path, default=CHECKOUT / "bench-train", help="where set and logs are kept")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
