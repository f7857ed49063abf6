"""make bench-gpu: ResNet-50 in bf16 on one GPU, synthetic and from the store, against a plain loop.

The plain loop has what torchvision's reference recipe has on the device (SGD with momentum, label smoothing, bf16
autocast) and channels_last, eager; ours is as ``imagenet-resnet50.yaml`` has it, compiled.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.report import Figure, Measures, closing_line, figures_table, medians, rounded, table
from bench.train.place import CHECKOUT
from bench.train.ranks import CaseFailed, run_ranks
from bench.train.sets import place_in_store

__all__ = ["gpu_figures"]

_CASES: dict[str, dict[str, Any]] = {
    "plain loop, synthetic": {"loop": "plain", "source": "synthetic"},
    "stoker, synthetic": {"loop": "stoker", "source": "synthetic"},
    "stoker, S3, CPU decode": {"loop": "stoker", "source": "cpu"},
    "stoker, S3, GPU decode": {"loop": "stoker", "source": "gpu"},
}
_COLUMNS = {"images_per_s": "images/s", "step_ms": "step ms", "goodput": "goodput"}


def main(arguments: Sequence[str]) -> int:
    """Run the cases; 0 unless the benchmark itself is broken, 2 where there is no GPU."""
    given = _parser().parse_args(arguments)
    if not given.toy and not _has_gpu():
        print("error: no CUDA device here; bench-gpu needs one (BENCH=--toy runs its code on the CPU)", file=sys.stderr)
        return 2
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leave no store behind
    names = [name for name in _CASES if not given.toy or "GPU decode" not in name]
    names = [name for name in names if not given.only or any(text.lower() in name.lower() for text in given.only)]
    rounds: dict[str, list[Measures]] = {name: [] for name in names}
    failed: dict[str, str] = {}
    with place_in_store(given.folder.absolute(), 64 if given.toy else given.images) as (place, _):
        for number in range(given.rounds):
            for name in (name for name in names if name not in failed):
                case = {**_sizes(is_toy=given.toy, micro=given.micro), **_CASES[name]}
                log = place.logs / f"gpu-{''.join(c if c.isalnum() else '-' for c in name)}.log"
                try:
                    rounds[name].append(run_ranks("gpu_loop", place, case, 1, log))
                except CaseFailed as error:
                    failed[name] = str(error)
                    continue
                values = {measure: rounded(value) for measure, value in rounds[name][-1].items()}
                print(json.dumps({"case": name, "round": number, **values}), flush=True)
    rows = [(n, *(f"{rounded(medians(m)[c]):g}" for c in _COLUMNS)) for n, m in rounds.items() if m]
    print(f"\n{table(('case', *_COLUMNS.values()), rows, is_markdown=given.markdown)}\n")
    for name, why in failed.items():
        print(f"failed: {name}: {why}")
    figures = gpu_figures(rounds)
    print(f"{figures_table(figures, is_markdown=given.markdown)}\n")
    print(closing_line("gpu", figures), flush=True)
    return 1 if failed else 0


def gpu_figures(rounds: dict[str, list[Measures]]) -> list[Figure]:
    """Medians of ratios round by round; one whose cases did not run is left out."""

    def ratio(above: str, below: str) -> float | None:
        pairs = zip(rounds.get(above, ()), rounds.get(below, ()), strict=False)
        ratios = [a["images_per_s"] / b["images_per_s"] for a, b in pairs]
        return statistics.median(ratios) if ratios else None

    wanted = (
        ("synthetic_vs_plain", ratio("stoker, synthetic", "plain loop, synthetic"), 1.10),
        ("true_vs_synthetic_cpu_decode", ratio("stoker, S3, CPU decode", "stoker, synthetic"), None),
        ("true_vs_synthetic_gpu_decode", ratio("stoker, S3, GPU decode", "stoker, synthetic"), None),
    )
    figures = [Figure(name, value, bar) for name, value, bar in wanted if value is not None]
    if true := [figure.value for figure in figures if figure.name.startswith("true")]:
        figures.append(Figure("true_vs_synthetic", max(true), 0.97))
    figures += [Figure(f"goodput_{n[-10:-7].lower()}_decode", medians(m)["goodput"]) for n, m in rounds.items() if
                m and n.endswith("decode")]  # fmt: skip
    return figures


def _sizes(*, is_toy: bool, micro: int) -> dict[str, Any]:
    if is_toy:
        return {"device": "cpu", "model": "digitsnet", "side": 32, "micro": 4, "warm": 1, "steps": 3,
                "compiles": False, "decode_threads": 1}  # fmt: skip
    threads = max(1, (os.cpu_count() or 2) - 2)
    return {"device": "cuda", "model": "resnet50", "side": 224, "micro": micro, "warm": 20, "steps": 100,
            "compiles": True, "decode_threads": threads}  # fmt: skip


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.train.gpu", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each case; medians are reported (default 3)")
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
