"""A training job as a user starts it, ours or stock Ray's, watched from outside by the lines that its ranks write.

Each rank appends a line per step to its own file, ``<trace>/<nanoseconds>-<pid>-rank<n>.jsonl``, created when the rank
is about to restore: the name contains the process id, its existence shows that the workers have started, and its first
line that the first step is done. Ours writes it for ``trace_dir``, the stock script by
the same rule, and both are read alike.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import psutil
import yaml

from bench.train.place import CHECKOUT, Place
from bench.train.ranks import CaseFailed
from stoker.errors import StorageError
from stoker.storage import locate

__all__ = ["Job", "Who"]

Who = Literal["stoker", "stock"]

_MODEL, _SIDE, _BATCH, _MICRO = "resnet18", 64, 16, 8
_CHECKPOINT_EVERY = 40
_POLL_S = 0.01
_TIMEOUT_S = 900.0
"""stock Ray notices a frozen worker after ten minutes"""


class Job:
    """One run of two workers of one CPU each; ``is_elastic``: of one or two."""

    def __init__(self, who: Who, name: str, place: Place, folder: Path, environment: dict[str, str], *, classes: int,
                 is_elastic: bool = False) -> None:  # fmt: skip
        self._who, self._name, self._place = who, name, place
        self._folder, self._environment = folder, environment
        self._classes, self._is_elastic = classes, is_elastic
        self._traces, self._log = folder / "trace", folder / f"{who}.log"
        self._traces.mkdir(parents=True, exist_ok=True)
        self._known: set[Path] = set()
        self._process: subprocess.Popen[bytes] | None = None

    # -- control --------------------------------------------------------------------------------------------------

    def submit(self) -> float:
        """Start the driver and return the time; ranks that wrote before now count as an earlier attempt's."""
        self.forget_ranks()
        began = time.perf_counter()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command(), cwd=CHECKOUT, env=self._environment, stdout=log, stderr=subprocess.STDOUT
            )
        return began

    def kill_driver(self) -> None:
        """SIGKILL the driver."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def end(self) -> None:
        """Leave no process of it: the driver, and ranks that outlive it (frozen ones)."""
        if self._process is not None:
            self.kill_driver()
        for pid in self.rank_pids(of_all=True):
            with contextlib.suppress(psutil.Error):
                if _is_ray_worker(pid):
                    os.kill(pid, signal.SIGKILL)

    # -- observation ----------------------------------------------------------------------------------------------

    def forget_ranks(self) -> None:
        """Only ranks that begin from now on are seen by the ``wait_for_…`` methods."""
        self._known = set(self._traces.glob("*.jsonl"))

    def rank_pids(self, *, of_all: bool = False) -> list[int]:
        """Processes of the ranks of this attempt, rank 0 first, or of all; those that live."""
        files = list(self._traces.glob("*.jsonl")) if of_all else self._fresh()
        pids = [int(file.name.split("-")[1]) for file in sorted(files, key=lambda f: int(f.stem.rpartition("rank")[2]))]
        return [pid for pid in pids if _is_alive(pid)]

    def driver_cpu_s(self) -> float:
        """CPU seconds of the driver."""
        assert self._process is not None
        times = psutil.Process(self._process.pid).cpu_times()
        return times.user + times.system

    def wait_for_workers(self) -> float:
        """The time when a rank of this attempt is about to restore."""
        return self._wait(lambda: bool(self._fresh()), "workers")

    def wait_for_step(self, steps: int = 1) -> float:
        """The time when a rank of this attempt has done ``steps`` steps."""
        return self._wait(lambda: any(_lines(file) >= steps for file in self._fresh()), f"{steps} steps")

    def wait_for_checkpoint(self) -> float:
        """The time when a checkpoint is committed, and a few steps more were done."""
        if self._who == "stoker":
            folder, ending = f"{self._place.storage}/runs/{self._name}/checkpoints", ".json"
        else:
            folder, ending = f"{self._place.storage}/{self._name}", "checkpoint_manager_snapshot.json"
        where = locate(folder, timeout_s=20)

        def exists() -> bool:
            time.sleep(0.3)
            with contextlib.suppress(StorageError, FileNotFoundError):
                return any(name.endswith(ending) for name in where.children())
            return False

        self._wait(exists, "checkpoint")
        done = max(_lines(file) for file in self._fresh())
        return self.wait_for_step(done + 5)

    def wait_for_next_attempt(self, old: list[int]) -> tuple[float, float, float]:
        """The times when the ranks ``old`` had ended, when new ones were about to restore, and of their first step."""
        seen: dict[str, float] = {}

        def is_over() -> bool:
            now = time.perf_counter()
            if self._fresh():
                seen.setdefault("workers", now)
            if "workers" in seen or not any(_is_alive(pid) for pid in old):
                seen.setdefault("ended", now)
            return any(_lines(file) for file in self._fresh())

        step = self._wait(is_over, "step after the fault")
        return seen.get("ended", step), seen.get("workers", step), step

    def wait_for_end_of(self, pids: list[int]) -> None:
        """Until none of ``pids`` lives; half a minute at most."""
        deadline = time.perf_counter() + 30
        while any(_is_alive(pid) for pid in pids) and time.perf_counter() < deadline:
            time.sleep(_POLL_S)

    # -- inside ----------------------------------------------------------------------------------------------------

    def _fresh(self) -> list[Path]:
        return [file for file in self._traces.glob("*.jsonl") if file not in self._known]

    def _wait(self, is_so: Callable[[], bool], what: str) -> float:
        assert self._process is not None
        deadline = time.perf_counter() + _TIMEOUT_S
        while not is_so():
            if self._process.poll() is not None:
                raise CaseFailed(
                    f"{self._who} exited with status {self._process.returncode} before {what}; see {self._log}"
                )
            if time.perf_counter() > deadline:
                raise CaseFailed(f"{self._who}: no {what} in {_TIMEOUT_S:.0f} s; see {self._log}")
            time.sleep(_POLL_S)
        return time.perf_counter()

    def _command(self) -> list[str]:
        low, high = (1, 2) if self._is_elastic else (2, 2)
        if self._who == "stock":
            config = {
                "name": self._name, "storage": self._place.storage, "data": self._place.data, "side": _SIDE,
                "batch": _BATCH, "classes": self._classes, "steps": 10**6, "checkpoint_every": _CHECKPOINT_EVERY,
                "workers": [low, high], "elastic": self._is_elastic, "trace_dir": str(self._traces),
            }  # fmt: skip
            return [sys.executable, str(Path(__file__).with_name("stock.py")), json.dumps(config)]
        recipe = {
            "name": self._name,
            "storage": self._place.storage,
            "data": {"url": self._place.data, "image_size": _SIDE, "memory_mb": 64, "decode_threads": 1},
            "model": {"name": _MODEL},
            "batch": {"total": _BATCH, "micro": _MICRO},
            "optimizer": {"lr": 0.01},
            "schedule": {"epochs": 10**4},
            "evaluation": {"every_epochs": 10**4},
            "checkpoint": {"every_steps": _CHECKPOINT_EVERY},
            "workers": {"min": low, "max": high, "gpus": 0, "cpus": 1, "max_failures": 3},
            "trace_dir": str(self._traces),
        }
        file = self._folder / "recipe.yaml"
        file.write_text(yaml.safe_dump(recipe))
        return [sys.executable, "jobs/train.py", str(file)]


def _lines(file: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return file.read_bytes().count(b"\n")
    return 0


def _is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _is_ray_worker(pid: int) -> bool:
    return "ray::" in " ".join(psutil.Process(pid).cmdline())
