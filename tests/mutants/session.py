"""One run of pytest for one module: which test runs which line, then each mutant in a process forked from here."""

from __future__ import annotations

import ast
import contextlib
import ctypes
import gc
import importlib
import json
import mmap
import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import hypothesis
import pytest

from mutants.asked import Asked
from mutants.mutations import Mutant, mutants_of
from mutants.transplant import transplant

__all__ = ["MutantRun"]

_LEAST_S = 3
_TIMES = 2
"""a test may use so many times the processor time that it took while its lines were recorded, which is slow; beyond
that it counts as a hang, which is noticed"""
_WAITS_S = 12
"""that it may wait beside that"""
_LONGEST_S = 1800
_PR_SET_PDEATHSIG = 1
_CLONE_NEWNS, _MS_REC, _MS_PRIVATE = 0x20000, 0x4000, 1 << 18
_MEMORY_BYTES = 6 << 30
"""of address space beyond what is mapped already: a wrong size must not take the machine's memory"""


@dataclass
class _Traced:
    item: pytest.Item
    lines: set[int]
    seconds: float


class MutantRun:
    """A plugin of pytest that, in place of the tests, runs the mutants of ``module``; :attr:`report` is the outcome."""

    def __init__(self, path: Path, module: str, asked: Asked) -> None:
        self._path, self._asked = path, asked
        self._module = importlib.import_module(module)
        self.report: dict[str, Any] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if session.testsfailed:  # while they were collected
            self.report = {"error": "the tests cannot be collected"}
            return True
        hypothesis.settings.register_profile(
            "mutants",
            deadline=None,
            database=None,
            derandomize=True,
            phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate),
        )
        hypothesis.settings.load_profile("mutants")
        gc.collect()
        gc.freeze()
        traced, failed = self._trace(session)
        if failed:
            self.report = {"error": f"{', '.join(failed)} fails without a mutant"}
            return True
        tree = ast.parse(self._path.read_text(encoding="utf-8"))
        every = mutants_of(tree)
        chosen = [mutant for mutant in every if mutant.line == self._asked.line]
        if not self._asked.line:
            most = min(self._asked.most or len(every), len(every))
            numbers = sorted(random.Random(str(self._path.name)).sample(range(len(every)), most))
            chosen = [every[number] for number in numbers]
        if self._asked.named is not None:
            chosen = [mutant for mutant in chosen if str(mutant) in self._asked.named]
        survivors = [str(mutant) for mutant in chosen if not self._is_noticed(session, tree, mutant, traced)]
        self.report = {"mutants": len(every), "tried": len(chosen), "survivors": survivors}
        return True

    def _trace(self, session: pytest.Session) -> tuple[list[_Traced], list[str]]:
        """(the lines that each test runs, in processes that it forks too, and how long it takes, the names of tests
        that fail)."""

        def run(write: Callable[[object], None]) -> int:
            name = str(self._path)
            seen = mmap.mmap(-1, 2 + len(self._path.read_bytes().splitlines()))  # shared with what is forked

            def in_frame(frame: FrameType, event: str, _: Any) -> Any:
                seen[frame.f_lineno or 0] = 1
                return in_frame

            def on_call(frame: FrameType, event: str, _: Any) -> Any:
                return in_frame if frame.f_code.co_filename == name else None

            threading.settrace(on_call)
            sys.settrace(on_call)
            for item in session.items:
                seen[:] = bytes(len(seen))
                failed, began = session.testsfailed, time.monotonic()
                _run(session, item)
                lines = [line for line, was_run in enumerate(seen) if was_run]
                write([time.monotonic() - began, session.testsfailed > failed, lines])
            return 0

        rows = _forked(run, _LONGEST_S)[1]
        found = [_Traced(item, set(row[2]), row[0]) for item, row in zip(session.items, rows, strict=False)]
        failed = [item.nodeid for item, row in zip(session.items, rows, strict=False) if row[1]]
        ended = [item.nodeid for item in session.items[len(rows) :][:1]]
        return sorted(found, key=lambda one: one.seconds), failed + ended

    def _is_noticed(self, session: pytest.Session, tree: ast.Module, mutant: Mutant, traced: list[_Traced]) -> bool:
        tests = [one for one in traced if mutant.is_outside or one.lines & mutant.lines]

        def run(_: Callable[[object], None]) -> int:
            mutant.make()
            try:
                transplant(self._module, tree, mutant.top)
            except BaseException:
                return 1
            for one in tests:
                seconds = _LEAST_S + _TIMES * one.seconds
                _limit_processor_time(seconds)
                one.item.add_marker(pytest.mark.timeout(2 * seconds + _WAITS_S, method="thread"))
                _run(session, one.item)
                if session.testsfailed:
                    return 1
            return 0

        return bool(tests) and _forked(run, _LONGEST_S)[0] != 0


def _run(session: pytest.Session, item: pytest.Item) -> None:
    item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)


def _limit_processor_time(seconds: float) -> None:
    used = sum(os.times()[:2])
    resource.setrlimit(resource.RLIMIT_CPU, (int(used + seconds) + 1, resource.RLIM_INFINITY))


def _forked(run: Callable[[Callable[[object], None]], int], timeout_s: float) -> tuple[int, list[Any]]:
    """(the status of ``run`` in a process of its own, what it wrote); what it started ends with it."""
    folder = tempfile.mkdtemp(prefix="stoker-mutant-")
    sys.stdout.flush()
    child = os.fork()
    if not child:
        os.setsid()
        libc = ctypes.CDLL(None)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # whatever ends this process ends its mutants
        if libc.unshare(_CLONE_NEWNS) == 0:  # what a killed test mounted goes with its process
            libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)
        code = 1
        try:
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            os.environ["PYTEST_DEBUG_TEMPROOT"] = os.environ["TMPDIR"] = tempfile.tempdir = folder
            mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (mapped + _MEMORY_BYTES,) * 2)
            with open(f"{folder}/rows", "w") as file:
                code = run(lambda row: print(json.dumps(row), file=file, flush=True))
        finally:
            os._exit(code)
    try:
        status = _waited(child, timeout_s)
        text = Path(folder, "rows").read_text() if Path(folder, "rows").exists() else ""
        return status, [json.loads(line) for line in text.splitlines()]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def _waited(child: int, timeout_s: float) -> int:
    handle = os.pidfd_open(child)
    try:
        ready = select.select([handle], [], [], timeout_s)[0]
        if not ready:
            os.killpg(child, signal.SIGKILL)
        return os.waitpid(child, 0)[1]
    finally:
        os.close(handle)
