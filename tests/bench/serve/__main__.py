"""make bench-serve: the endpoint against FastAPI, LitServe and Serve's default proxy; overload, faults and starts."""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path

from bench.report import Measures, closing_line, figures_table, medians, rounded, table
from bench.serve.cases import Case, cases, chosen
from bench.serve.clusters import Stoker, stoker
from bench.serve.figures import serve_figures
from bench.serve.place import CHECKOUT, CaseFailed, child_environment
from stoker.command import quiet_libraries
from stoker.errors import StokerError

logger = logging.getLogger(__name__)

_COLUMNS = {
    "requests_per_s": "requests/s",
    "images_per_s": "images/s",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "offered_per_s": "offered/s",
    "accepted_requests_per_s": "accepted/s",
    "accepted_p50_ms": "accepted p50 ms",
    "accepted_p99_ms": "accepted p99 ms",
    "refused_p50_ms": "refused p50 ms",
    "refused_p99_ms": "refused p99 ms",
    "refused": "refused",
    "otherwise": "otherwise",
    "seconds": "s",
    "load": "load",
}
_PACKAGES = ("ray", "torch", "fastapi", "uvicorn")


def main(arguments: Sequence[str]) -> int:
    """Run the cases; returns 0 unless the benchmark itself fails."""
    given = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    quiet_libraries()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leave no store, cluster or server behind
    try:
        every = cases(rounds=given.rounds, seconds=given.seconds, is_toy=given.toy)
        wanted = chosen(every, given.only)
    except ValueError as error:
        logger.error("error: %s", error)
        return 2
    if given.list:
        print("\n".join(f"{case.name}: {case.what}" for case in every))
        return 0
    own = child_environment()
    os.environ.clear()
    os.environ.update(own)
    folder = given.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, list[Measures]]] = {case.name: {} for case in wanted}
    failed: dict[str, str] = {}
    with ExitStack() as running:
        place: Stoker | None = None
        for case in wanted:
            began = time.monotonic()
            try:
                if case.measure is not None and place is None:
                    place = running.enter_context(stoker(folder))
                _run(case, folder, place, found[case.name])
            except (CaseFailed, StokerError, OSError, ValueError, KeyError) as error:
                failed[case.name] = str(error) if isinstance(error, CaseFailed | StokerError) else repr(error)
                logger.info("%s failed: %s", case.name, failed[case.name])
            logger.info("%s: %.0f s", case.name, time.monotonic() - began)
    return _report(found, failed, is_markdown=given.markdown)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.serve", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contender (default 3)")
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds of a turn (default 3)")
    parser.add_argument("--only", action="append", default=[], metavar="CASE", help="this case; may be repeated")
    parser.add_argument("--toy", action="store_true", help="stoker alone, shortly, to check that the code runs")
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown, for docs/benchmarks")
    parser.add_argument("--folder", type=Path, default=CHECKOUT / "bench-serve", help="folder of state and logs")
    parser.add_argument("--list", action="store_true", help="print the names of the cases and exit")
    return parser


def _run(case: Case, folder: Path, place: Stoker | None, rows: dict[str, list[Measures]]) -> None:
    if case.measure is None:
        assert case.alone is not None
        measured = case.alone(folder)
    else:
        assert place is not None
        measured = case.measure(place)
    for row, measures in measured:
        rows.setdefault(row, []).append(measures)
        values = {name: rounded(value) for name, value in measures.items()}
        print(json.dumps({"case": case.name, "row": row, "round": len(rows[row]) - 1, **values}), flush=True)


def _report(found: dict[str, dict[str, list[Measures]]], failed: dict[str, str], *, is_markdown: bool) -> int:
    versions = ", ".join(f"{package} {metadata.version(package)}" for package in _PACKAGES)
    print(f"\n{os.cpu_count()} CPUs, Python {platform.python_version()}, {versions}")
    for case, rows in found.items():
        if not rows:
            continue
        middle = {row: medians(measured) for row, measured in rows.items()}
        used = [name for name in _COLUMNS if any(name in one for one in middle.values())]
        cells = [(row, *(f"{rounded(one[n]):g}" if n in one else "" for n in used)) for row, one in middle.items()]
        print(f"\n{table((case, *(_COLUMNS[name] for name in used)), cells, is_markdown=is_markdown)}")
    print()
    for name, why in failed.items():
        print(f"failed: {name}: {why}")
    figures = serve_figures(found)
    print(f"\n{figures_table(figures, is_markdown=is_markdown)}\n")
    print(closing_line("serve", figures), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
