"""Jobs on a cluster: from submission to the first step, and from a fault to the next one.

The time from a fault is split at what can be seen from outside: *detection* until the old ranks have ended, *restart*
until a new rank is about to restore, *restore* until the first step after that.
"""

from __future__ import annotations

import os
import signal
import time
import uuid
from pathlib import Path
from typing import Literal

from bench.report import Measures
from bench.train.clusters import Cluster, started
from bench.train.jobs import Job, Who
from bench.train.place import Place

__all__ = ["Fault", "measure"]

Fault = Literal["none", "worker", "node", "frozen", "driver"]


def measure(place: Place, store: dict[str, str], *, who: Who, fault: Fault, classes: int) -> Measures:
    """Seconds: ``first_step_s`` after a submission, or ``next_step_s`` after the fault with its parts.

    Raises:
        CaseFailed: the job ended, or took minutes longer than it may.
    """
    folder = Path(place.folder) / "jobs" / f"{fault}-{who}-{uuid.uuid4().hex[:8]}"
    is_node = fault == "node"
    with started(who, Path(place.folder), store, nodes=2 if is_node else 1) as cluster:
        job = Job(who, folder.name, place, folder, cluster.environment, classes=classes, is_elastic=is_node)
        try:
            return _injected(job, cluster, fault)
        finally:
            job.end()


def _injected(job: Job, cluster: Cluster, fault: Fault) -> Measures:
    before_s = cluster.cpu_s()
    submitted = job.submit()
    if fault == "none":
        workers = job.wait_for_workers()
        step = job.wait_for_step()
        used_s = job.driver_cpu_s() + cluster.cpu_s() - before_s
        return {"first_step_s": step - submitted, "restore_s": step - workers, "cpu_s": used_s}
    job.wait_for_checkpoint()
    pids = job.rank_pids()
    job.forget_ranks()
    if fault == "driver":
        return _driver(job, pids)
    began = time.perf_counter()
    if fault == "node":
        assert cluster.second_node is not None
        cluster.second_node.kill()
    else:
        os.kill(pids[1], signal.SIGKILL if fault == "worker" else signal.SIGSTOP)
    ended, workers, step = job.wait_for_next_attempt(pids)
    return {
        "next_step_s": step - began,
        "detection_s": ended - began,
        "restart_s": workers - ended,
        "restore_s": step - workers,
    }


def _driver(job: Job, pids: list[int]) -> Measures:
    """The clock starts when the driver is submitted again, which is when the old ranks have ended."""
    killed = time.perf_counter()
    job.kill_driver()
    job.wait_for_end_of(pids)
    submitted = job.submit()
    _, workers, step = job.wait_for_next_attempt(pids)
    return {
        "next_step_s": step - submitted,
        "detection_s": submitted - killed,
        "restart_s": workers - submitted,
        "restore_s": step - workers,
    }
