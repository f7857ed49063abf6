"""make mutants: small mistakes in the pure parts, one at a time, and whether a test notices each.

Nothing in the checkout is changed: a mutant is code in the memory of a process that is forked for it. Each module has
its tests in ``table``; of these, those that run the mutant's line are run, the fastest first, until one fails. A hang
counts as noticed.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from mutants.asked import Asked
from mutants.table import TESTS_OF

__all__ = ["main"]

_CHECKOUT = Path(__file__).parents[2]
_PACKAGE = _CHECKOUT / "platform" / "stoker"
_PRELOADED = (
    "torch",
    "torchvision",
    "pyarrow.parquet",
    "pytest",
    "hypothesis",
    "PIL.Image",
    "s3fs",
    "pydantic",
    "scipy.io",
)
"""imported once; the modules under test are not"""
_PR_SET_PDEATHSIG = 1
_LEFT_OUT = "not long and not store and not cluster and not browser and not gpu"


def main(arguments: Sequence[str]) -> int:
    """Try mutants and print a line a module; 0 if at least ``--least`` percent were noticed."""
    parser = argparse.ArgumentParser(prog="python -m mutants", description=__doc__)
    parser.add_argument("modules", nargs="*", help="parts of paths, such as epoch.py (default: all in the table)")
    parser.add_argument("--per-module", type=int, default=60, help="mutants of each module, 0 for all (default 60)")
    parser.add_argument("--line", type=int, default=0, help="all mutants of this line instead")
    parser.add_argument("--again", type=Path, help="a printed report: of these mutants, only those that it lists")
    parser.add_argument("--least", type=float, default=90.0, help="percent that must be noticed (default 90)")
    given = parser.parse_args(arguments)
    names = [name for name in TESTS_OF if not given.modules or any(part in name for part in given.modules)]
    listed = given.again.read_text().splitlines() if given.again else None
    for name in _PRELOADED:
        importlib.import_module(name)
    sys.modules["torch"].set_num_threads(1)  # the models of tests are so small that more only wait for each other
    tried, noticed, failed = 0, 0, False
    for name in names:
        began = time.monotonic()
        report = _in_child(name, given.per_module, given.line, listed)
        if "error" in report:
            print(f"{name}: {report['error']}", flush=True)
            failed = True
            continue
        kept = len(report["survivors"])
        tried, noticed = tried + report["tried"], noticed + report["tried"] - kept
        print(
            f"{name}: {report['tried'] - kept} of {report['tried']} noticed "
            f"({_percent(report['tried'] - kept, report['tried'])} %; {report['mutants']} in all, "
            f"{time.monotonic() - began:.0f} s)",
            *(f"  {survivor}" for survivor in report["survivors"]),
            sep="\n",
            flush=True,
        )
    print(f"together: {noticed} of {tried} noticed ({_percent(noticed, tried)} %)")
    return int(failed or noticed < given.least / 100 * tried)


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / max(1, whole):.1f}"


def _listed(lines: list[str] | None, name: str) -> frozenset[str] | None:
    """The mutants below the line of module ``name``."""
    if lines is None:
        return None
    begin = next((i for i, line in enumerate(lines, 1) if line.startswith(f"{name}: ")), len(lines))
    return frozenset(line.strip() for line in itertools.takewhile(lambda line: line.startswith("  "), lines[begin:]))


def _in_child(name: str, most: int, line: int, listed: list[str] | None) -> dict[str, object]:
    """The report of one module, whose tests are collected in a process of their own."""
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        os.close(ours)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        try:
            with os.fdopen(theirs, "w") as pipe:
                json.dump(_report(name, Asked(most, line, _listed(listed, name))), pipe)
        finally:
            os._exit(0)
    os.close(theirs)
    with os.fdopen(ours) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return json.loads(text) if text else {"error": "ended without a report"}


def _report(name: str, asked: Asked) -> dict[str, object]:
    import pytest

    from mutants.session import MutantRun

    module = ".".join(("stoker", *Path(name).with_suffix("").parts))
    run = MutantRun(_PACKAGE / name, module, asked)
    tests = [str(_CHECKOUT / "tests" / test) for test in TESTS_OF[name]]
    options = [
        "-q",
        "-q",
        "-s",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "-p",
        "no:faulthandler",
        "-m",
        _LEFT_OUT,
        "--rootdir",
        str(_CHECKOUT),
    ]
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    pytest.main([*options, *tests], plugins=[run])
    return run.report or {"error": "pytest ran nothing"}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
