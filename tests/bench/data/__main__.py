"""make bench-data: stoker's data path compared with its peers', in one run on this machine."""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.data.cases import CASES, Case, chosen
from bench.data.environments import CHECKOUT, Environments
from bench.data.figures import data_figures
from bench.data.place import Place
from bench.data.rounds import Outcome, run_rounds
from bench.data.sets import make_images, make_peer_sets, make_stoker_set
from bench.report import Measures, closing_line, figures_table, medians, rounded, table
from stoker.command import quiet_libraries
from stoker.embedded import ObjectStore, Settings, StateFolder

_COLUMNS = {
    "images_per_s": "images/s",
    "images_per_cpu_s": "images/CPU-s",
    "first_batch_s": "first batch s",
    "resume_s": "resume s",
    "lost": "lost",
    "repeated": "repeated",
    "mb_per_s": "MB/s",
    "mb_per_cpu_s": "MB/CPU-s",
    "mb_per_s_with_start": "MB/s with start",
    "peak_mib": "peak MiB",
    "bound_mib": "bound MiB",
}


def main(arguments: Sequence[str]) -> int:
    """Run the cases; returns 0 unless the benchmark itself fails."""
    given = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    quiet_libraries()
    cases = chosen(given.only)
    environments = Environments.found({case.environment for case in cases}, installs=given.peers == "install")
    place = _place(given.folder.absolute(), given.images, given.seed)
    kinds = {case.kind for case in cases}
    with _store(given.folder.absolute()) as store:
        make_images(place, given.seed)
        absent = make_peer_sets(place, kinds, environments, store)
        prepared_per_s = make_stoker_set(place, kinds, store)
        outcomes = run_rounds(cases, place, environments, store, rounds=given.rounds, on_result=_print_result)
    return _report(outcomes, {**environments.refused, **absent}, prepared_per_s, is_markdown=given.markdown)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.data", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each case; medians are reported (default 3)")
    parser.add_argument("--images", type=int, default=4096, help="images of the data set (default 4096)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the data set (default 0)")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="TEXT",
        help="run cases whose name contains TEXT; may be repeated",
    )
    parser.add_argument("--peers", choices=("install", "as-they-are"), default="install", help="default: install")
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown, for docs/benchmarks.md")
    parser.add_argument("--folder", type=Path, default=CHECKOUT / "bench-data", help="folder of the data sets")
    parser.add_argument("--list", action="version", version="\n".join(c.name for c in CASES), help="the cases' names")
    return parser


def _place(folder: Path, images: int, seed: int) -> Place:
    name = f"images-{images}-seed-{seed}"
    (folder / name).mkdir(parents=True, exist_ok=True)
    return Place(str(folder / name), Settings.model_validate({}).bucket, name, str(folder / "scratch"), images)


@contextmanager
def _store(folder: Path) -> Iterator[dict[str, str]]:
    """An object store of the benchmark's own on a free port; its variables, which are this process's as well."""
    ports = {"s3": 0, "gcs": 0, "dashboard": 0, "serve": 0}
    store = ObjectStore(StateFolder(folder / "state"), Settings.model_validate({"ports": ports}))
    with store.folder.lock():
        store.start()
    try:
        variables = store.environment()
        os.environ |= variables
        yield variables
    finally:
        with store.folder.lock():
            store.stop()


def _print_result(case: Case, number: int, measures: Measures) -> None:
    values = {name: rounded(value) for name, value in measures.items()}
    print(json.dumps({"case": case.name, "role": case.role, "round": number, **values}), flush=True)


def _report(outcomes: list[Outcome], absent: dict[str, str], prepared_per_s: float, *, is_markdown: bool) -> int:
    rows = []
    for outcome in outcomes:
        found = medians(outcome.rounds)
        cells = [f"{rounded(found[name]):g}" if name in found else "" for name in _COLUMNS]
        rows.append((outcome.case.name, *cells))
    print(f"\n{_machine()}; jobs/prepare.py took in {prepared_per_s:.0f} images/s\n")
    used = [i for i in range(len(_COLUMNS) + 1) if i == 0 or any(row[i] for row in rows)]
    head = ("case", *_COLUMNS.values())
    print(table([head[i] for i in used], [[row[i] for i in used] for row in rows], is_markdown=is_markdown))
    for what, why in absent.items():
        print(f"not there: {what}: {why}")
    for outcome in outcomes:
        if outcome.absent or outcome.failed:
            what = "failed" if outcome.failed else "not there"
            print(f"{what}: {outcome.case.name}: {outcome.failed or outcome.absent}")
    figures = data_figures(outcomes)
    print(f"\n{figures_table(figures, is_markdown=is_markdown)}\n")
    print(closing_line("data", figures), flush=True)
    return 1 if any(outcome.failed for outcome in outcomes) else 0


def _machine() -> str:
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    return f"{os.cpu_count()} CPUs ({model}), Python {platform.python_version()}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
