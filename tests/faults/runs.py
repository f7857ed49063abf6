"""Training runs as a user starts them, for tests that break them: who works on them, and what they did and saw."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from conftest import Store
from made import write_dataset
from stoker.embedded import Instance
from stoker.runs.folder import RunFolder
from stoker.storage import locate
from traces import groups_of_workers

__all__ = ["BATCH", "CHECKOUT", "STEPS", "Attempt", "Job", "Run", "kill", "processes_of", "wait_for"]

CHECKOUT = Path(__file__).parents[2]
SAMPLES, BATCH = 1501, 16
STEPS = SAMPLES // BATCH
"""of an epoch"""
EVERY = 20
"""steps between two checkpoints"""
RECIPE = """
name: run
storage: {storage}
data: {{url: {storage}/data, image_size: 32, memory_mb: 8}}
model: {{name: digitsnet}}
batch: {{total: 16, micro: 4}}
optimizer: {{lr: 0.01}}
schedule: {{epochs: {epochs}}}
ema: {{decay: 0.9}}
checkpoint: {{every_steps: 20, keep: 2}}
workers: {{min: 2, max: 2, gpus: 0, cpus: 1}}
trace_dir: {trace}
log_every_s: 1
"""


def wait_for(condition: Callable[[], Any], what: str, *, job: Job | None = None, timeout_s: float = 150) -> Any:
    """What ``condition`` gives as soon as it is true; fails when ``job`` ends before, or it takes too long."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        said = job.said() if job else ""
        assert job is None or job.process.poll() is None, f"the job ended before {what}: {said[-4000:]}"
        assert time.monotonic() < deadline, f"no {what} in {timeout_s:g} s: {said[-4000:]}"
        time.sleep(0.02)
    return found


@dataclass(frozen=True)
class Attempt:
    """What one group of workers did: by step of the run, the samples of all its ranks and when the last was done."""

    pids: dict[int, int]
    """by rank"""
    steps: dict[int, list[int]]
    times: dict[int, float]

    @property
    def first_at(self) -> float:
        """When the first step was done, in seconds since the epoch."""
        return min(self.times.values())


@dataclass
class Job:
    """``python jobs/train.py``: its process, and the file that its output goes to."""

    process: subprocess.Popen[bytes]
    output: Path

    def said(self) -> str:
        return self.output.read_text(errors="replace")

    def end(self, timeout_s: float = 200) -> str:
        """Wait until it has ended; returns what it said."""
        self.process.wait(timeout=timeout_s)
        return self.said()


@dataclass
class Run:
    """A run with two workers on a data set of noise at a fresh place of the store."""

    store: Store
    folder: Path
    epochs: int = 3
    jobs: list[Job] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.storage = self.store.fresh("run")
        write_dataset(f"{self.storage}/data", {"train": [500, 501, 500], "validation": [40]})
        self.traces = self.folder / "traces"
        self.recipe = self.folder / "run.yaml"
        self.recipe.write_text(RECIPE.format(storage=self.storage, trace=self.traces, epochs=self.epochs))
        self.at = RunFolder(locate(self.storage), "run")

    def start(self, *overrides: str, **environment: str) -> Job:
        output = self.folder / f"job{len(self.jobs)}.log"
        command = [sys.executable, "jobs/train.py", str(self.recipe), *overrides]
        with output.open("wb") as file:
            process = subprocess.Popen(
                command, cwd=CHECKOUT, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **environment}
            )
        self.jobs.append(Job(process, output))
        return self.jobs[-1]

    @contextmanager
    def running(self, *overrides: str, **environment: str) -> Iterator[Job]:
        """A job that is killed at the block's end, if it still runs."""
        job = self.start(*overrides, **environment)
        try:
            yield job
        finally:
            if job.process.poll() is None:
                job.process.kill()
                job.process.wait()

    def attempts(self) -> list[Attempt]:
        """What the traces tell, in the order in which the groups of workers started."""
        return [self._attempt(group) for group in groups_of_workers(self.traces)]

    def _attempt(self, group: dict[int, tuple[int, Path]]) -> Attempt:
        steps: dict[int, list[int]] = {}
        times: dict[int, float] = {}
        for _, file in group.values():
            for line in file.read_text().splitlines(keepends=True):
                if not line.endswith("\n"):
                    continue  # cut short by a kill
                entry = json.loads(line)
                step = entry["epoch"] * STEPS + entry["step"]
                steps.setdefault(step, []).extend(entry["samples"])
                times[step] = max(times.get(step, 0.0), entry["time"])
        whole = {step: samples for step, samples in steps.items() if len(samples) == BATCH}
        return Attempt({rank: pid for rank, (pid, _) in group.items()}, whole, times)

    def wait_for_steps(self, job: Job, attempt: int, count: int = 5) -> Attempt:
        """Until the ``attempt``-th group of workers (from 0) did ``count`` steps."""

        def there() -> Attempt | None:
            found = self.attempts()
            return found[attempt] if len(found) > attempt and len(found[attempt].steps) >= count else None

        return wait_for(there, f"{count} steps of attempt {attempt + 1}", job=job)

    def wait_until_said(self, job: Job, text: str) -> None:
        wait_for(lambda: text in job.said(), f"line {text!r}", job=job)

    def must_have_seen_each_sample_once(self) -> None:
        """Over all attempts: what counts is whole, nothing in it is repeated or lost, what was redone is the same."""
        attempts = self.attempts()
        seen: dict[int, list[int]] = {}
        for attempt in attempts:
            for step, samples in attempt.steps.items():
                assert sorted(seen.setdefault(step, samples)) == sorted(samples), f"step {step} was other samples again"
        assert sorted(seen) == list(range(self.epochs * STEPS)), "steps are missing"
        for epoch in range(self.epochs):
            samples = [n for step in range(epoch * STEPS, (epoch + 1) * STEPS) for n in seen[step]]
            assert len(set(samples)) == STEPS * BATCH, f"epoch {epoch}: samples repeated"
        assert max(self.lost_steps(), default=0) <= 2 * EVERY, "more was done again than what no checkpoint held"

    def lost_steps(self) -> list[int]:
        """Between each two attempts: how many steps were done again."""
        pairs = itertools.pairwise(self.attempts())
        return [max(before.steps, default=-1) + 1 - min(after.steps) for before, after in pairs if after.steps]


def processes_of(cluster: Instance, name: str) -> list[psutil.Process]:
    """The cluster's processes whose command line begins with ``name``."""
    found = []
    for process in cluster.cluster._part.processes():
        try:
            if " ".join(process.cmdline()).startswith(name):
                found.append(process)
        except psutil.Error:
            continue
    return found


def kill(*pids: int) -> float:
    """SIGKILL; returns the time."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    return time.time()
