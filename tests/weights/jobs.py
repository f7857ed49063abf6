"""Runs on the embedded store and cluster, started as a user does, that are killed or resized while they run."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from nodes import second_node
from stoker.embedded import Instance
from stoker.recipe import Recipe, as_yaml
from stoker.runs.checkpoints import MODEL
from stoker.runs.folder import RunFolder
from stoker.storage import locate
from traces import groups_of_workers
from weights.ranks import sha256_of

__all__ = ["STEPS_PER_EPOCH", "JobRun", "grown_and_shrunk", "killed_twice"]

CHECKOUT = Path(__file__).parents[2]
STEPS_PER_EPOCH = 50
_TIMEOUT_S = 400.0


@dataclass
class JobRun:
    """The run ``recipe``, started by jobs/train.py; ``folder`` is for its files on this machine."""

    recipe: Recipe
    folder: Path

    def __post_init__(self) -> None:
        self._traces, self._jobs = self.folder / "traces", 0
        self._file = self.folder / "recipe.yaml"
        self.folder.mkdir(parents=True)
        self._file.write_text(as_yaml(self.recipe.model_copy(update={"trace_dir": str(self._traces)})))

    @contextlib.contextmanager
    def started(self, *overrides: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run the job until the block ends."""
        self._jobs += 1
        with self._log_file.open("wb") as log:
            command = [sys.executable, "jobs/train.py", str(self._file), *overrides]
            job = subprocess.Popen(command, cwd=CHECKOUT, stdout=log, stderr=subprocess.STDOUT)
        try:
            yield job
        finally:
            job.kill()
            job.wait()

    @property
    def _log_file(self) -> Path:
        return self.folder / f"job{self._jobs}.log"

    def must_succeed(self, job: subprocess.Popen[bytes]) -> None:
        if code := job.wait(timeout=_TIMEOUT_S):
            raise RuntimeError(f"jobs/train.py exited with status {code}: {self.log()[-3000:]}")

    def log(self) -> str:
        return self._log_file.read_text(errors="replace")

    def groups(self) -> list[dict[int, tuple[int, int]]]:
        """Each group of workers that did a step, in order: {rank: (process, last step done)}."""
        found: list[dict[int, tuple[int, int]]] = []
        for group in groups_of_workers(self._traces):
            last = {rank: (process, _last_step(file)) for rank, (process, file) in group.items()}
            if done := {rank: (process, step) for rank, (process, step) in last.items() if step is not None}:
                found.append(done)
        return found

    def wait_for(self, condition: Callable[[], object], what: str, job: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _TIMEOUT_S
        while not condition():
            if job.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{what} did not happen: {self.log()[-3000:]}")
            time.sleep(0.05)

    def has_done(self, step: int, size: int) -> bool:
        """Whether there are ``size`` workers now and all have done ``step``."""
        groups = self.groups()
        return bool(groups) and len(groups[-1]) == size and min(last for _, last in groups[-1].values()) >= step

    def world_sizes(self) -> list[int]:
        return [len(group) for group in self.groups()]

    def sha256(self, step: int) -> str:
        """Return the hash of the weights of the checkpoint at ``step``, as the safetensors library writes them."""
        checkpoint = RunFolder(locate(self.recipe.storage), self.recipe.name).latest_checkpoint()
        if checkpoint is None or checkpoint.step != step:
            raise RuntimeError(f"run {self.recipe.name} has no checkpoint at step {step}")
        return sha256_of(checkpoint.tensors(MODEL))


def _last_step(trace: Path) -> int | None:
    lines = [line for line in trace.read_text().splitlines(keepends=True) if line.endswith("\n")]
    if not lines:
        return None
    place = json.loads(lines[-1])
    return int(place["epoch"] * STEPS_PER_EPOCH + place["step"])


def killed_twice(run: JobRun) -> list[int]:
    """Kill a worker of 2, then the driver of 3, and finish with 1 worker that has more CPUs.

    Returns the world sizes that did steps.
    """
    with run.started("workers.min=2", "workers.max=2", "workers.max_failures=0") as job:
        run.wait_for(lambda: run.has_done(24, 2), "24 steps of 2 workers", job)
        os.kill(run.groups()[-1][1][0], signal.SIGKILL)
        if job.wait(timeout=_TIMEOUT_S) == 0:
            raise RuntimeError("the run continued without a worker")
    with run.started("workers.min=3", "workers.max=3", "workers.max_failures=0") as job:
        run.wait_for(lambda: run.has_done(63, 3), "63 steps of 3 workers", job)
        workers = [process for process, _ in run.groups()[-1].values()]
        job.kill()
        job.wait()
    deadline = time.monotonic() + _TIMEOUT_S
    while any(psutil.pid_exists(worker) for worker in workers):
        if time.monotonic() > deadline:
            raise RuntimeError("the workers of a killed driver are still alive")
        time.sleep(0.1)
    with run.started("workers.min=1", "workers.max=1", "workers.cpus=2") as job:
        run.must_succeed(job)
    return run.world_sizes()


def grown_and_shrunk(run: JobRun, cluster: Instance) -> list[int]:
    """Elastic: starts on the head, grows when a node joins, shrinks when it is killed, all in mid-epoch."""
    head = cluster.settings.ray_cpus
    elastic = ["workers.min=1", f"workers.max={head + 1}", "workers.max_failures=-1", "workers.resize_every_s=5"]
    with run.started(*elastic) as job:
        run.wait_for(lambda: run.has_done(3, head), f"steps of {head} workers", job)
        with second_node(cluster.cluster):
            run.wait_for(lambda: run.has_done(0, head + 1), f"growth to {head + 1} workers", job)
            began = min(last for _, last in run.groups()[-1].values())
            run.wait_for(lambda: run.has_done(began + 12, head + 1), f"steps of {head + 1} workers", job)
        run.must_succeed(job)
    return run.world_sizes()
