"""make bench-train: stoker's step, data path, checkpoints, starts and recoveries against a plain loop and stock Ray."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import logging
import os
import platform
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from bench.report import Measures, closing_line, figures_table, medians, rounded, table
from bench.train import faults
from bench.train.cases import Case, cases, chosen
from bench.train.figures import train_figures
from bench.train.place import CHECKOUT, Place
from bench.train.ranks import CaseFailed, run_ranks
from bench.train.sets import CLASSES, place_in_store
from stoker.command import quiet_libraries
from stoker.errors import StokerError

logger = logging.getLogger(__name__)

_COLUMNS = {
    "step_ms": "step ms",
    "images_per_s": "images/s",
    "plain_images_per_s": "plain images/s",
    "synthetic_images_per_s": "synthetic images/s",
    "time_ratio": "time ratio",
    "cpu_ratio": "CPU ratio",
    "float_s": "float s",
    "exact_s": "exact s",
    "share": "overhead",
    "processor_share": "CPU overhead",
    "bits_kept": "bits",
    "data_ratio": "true/synthetic",
    "data_wait": "data wait",
    "call_s": "call s",
    "slowed_s": "slowed s",
    "commit_s": "commit s",
    "first_step_s": "first step s",
    "cpu_s": "CPU s",
    "next_step_s": "next step s",
    "detection_s": "detection s",
    "restart_s": "restart s",
    "restore_s": "restore s",
}


def main(arguments: Sequence[str]) -> int:
    """Run the cases; returns 0 unless the benchmark itself fails."""
    given = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    quiet_libraries()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leave no store, cluster or job behind
    every = cases(is_toy=given.toy, with_stock_frozen=given.stock_frozen)
    if given.list:
        print("\n".join(case.name for case in every))
        return 0
    wanted = chosen(every, given.only)
    rounds: dict[str, list[Measures]] = {case.name: [] for case in wanted}
    failed: dict[str, str] = {}
    folder = given.folder.absolute()
    with _place(folder, wanted, 64 if given.toy else given.images) as (place, store):
        for number in range(given.rounds):
            for case in wanted:
                if case.name not in failed:
                    _run(case, number, place, store, rounds, failed)
    return _report(wanted, rounds, failed, is_markdown=given.markdown)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.train", description=__doc__)
    parser.add_argument("--rounds", type=int, default=2, help="rounds of each case; medians are reported (default 2)")
    parser.add_argument("--images", type=int, default=512, help="images of the data set in the store (default 512)")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="TEXT",
        help="run cases whose name contains TEXT; may be repeated",
    )
    parser.add_argument(
        "--stock-frozen",
        action="store_true",
        help="also wait for stock Ray to notice a frozen worker, ten minutes per round",
    )
    parser.add_argument("--toy", action="store_true", help="tiny models and counts, to check that the code runs")
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown, for docs/benchmarks.md")
    parser.add_argument("--folder", type=Path, default=CHECKOUT / "bench-train", help="folder of the data set and logs")
    parser.add_argument("--list", action="store_true", help="print the names of the cases and exit")
    return parser


@contextlib.contextmanager
def _place(folder: Path, wanted: Sequence[Case], images: int) -> Iterator[tuple[Place, dict[str, str]]]:
    """Yield where the cases run; starts a store with the data set if one of them needs it."""
    if all(case.needs == "nothing" for case in wanted):
        yield Place(str(folder)), {}
        return
    with place_in_store(folder, images) as found:
        yield found


def _run(
    case: Case,
    number: int,
    place: Place,
    store: dict[str, str],
    rounds: dict[str, list[Measures]],
    failed: dict[str, str],
) -> None:
    began = time.monotonic()
    try:
        if case.ranks:
            name = "".join(c if c.isalnum() else "-" for c in case.name)
            found = run_ranks(case.measure, place, case.arguments, case.ranks, place.logs / f"{name}.log")
        elif case.measure == "exact":
            cost = asdict(importlib.import_module("bench.train.exact").measure(**case.arguments))
            found = {name: float(value) for name, value in cost.items() if name not in case.arguments}
        else:
            found = faults.measure(place, store, who=case.who, classes=CLASSES, **case.arguments)
    except (CaseFailed, StokerError) as error:
        failed[case.name] = str(error)
        logger.info("%s: %s", case.name, error)
        return
    logger.info("%s: %.0f s", case.name, time.monotonic() - began)
    rounds[case.name].append(found)
    values = {name: rounded(value) for name, value in found.items()}
    print(json.dumps({"case": case.name, "round": number, **values}), flush=True)


def _report(
    wanted: Sequence[Case], rounds: dict[str, list[Measures]], failed: dict[str, str], *, is_markdown: bool
) -> int:
    rows = []
    for case in wanted:
        found = medians(rounds[case.name])
        cells = [f"{rounded(found[name]):g}" if name in found else "" for name in _COLUMNS]
        rows.append((case.name, *cells))
    used = [i for i in range(len(_COLUMNS) + 1) if i == 0 or any(row[i] for row in rows)]
    head = ("case", *_COLUMNS.values())
    print(f"\n{os.cpu_count()} CPUs, Python {platform.python_version()}\n")
    print(table([head[i] for i in used], [[row[i] for i in used] for row in rows], is_markdown=is_markdown))
    for name, why in failed.items():
        print(f"failed: {name}: {why}")
    figures = train_figures(wanted, rounds)
    print(f"\n{figures_table(figures, is_markdown=is_markdown)}\n")
    print(closing_line("train", figures), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
