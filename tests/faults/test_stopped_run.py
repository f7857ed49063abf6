"""A run whose worker and whose driver are asked to go, then its job by ``ray job stop``: no step is done twice."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import Store
from faults.runs import CHECKOUT, Attempt, Run, wait_for
from stoker.embedded import Instance
from stoker.embedded.processes import program


@pytest.mark.long
@pytest.mark.store
@pytest.mark.cluster
def test_a_run_that_is_asked_to_go_or_to_stop_loses_nothing(
    roomy: Instance, store: Store, tmp_path: Path, record_property: pytest.RecordProperty
) -> None:
    run = Run(store, tmp_path, epochs=15)  # so that it does not finish before a loaded machine has sent the stop
    with run.running() as job:
        first = run.wait_for_steps(job, 0, 10)
        os.kill(first.pids[1], signal.SIGTERM)
        asked = time.time()
        second = run.wait_for_steps(job, 1, 10)
        record_property("worker_sigterm_to_next_step_s", second.first_at - asked)

        asked = time.time()
        job.process.terminate()
        said = job.end()
        record_property("driver_sigterm_to_end_s", time.time() - asked)
    assert job.process.returncode == 128 + signal.SIGTERM, said[-3000:]
    stopped_at = max(run.attempts()[1].steps) + 1
    assert f"stopped at step {stopped_at} on SIGTERM; submit it again to resume" in said

    job_id = _ray_job("submit", "--no-wait", "--", sys.executable, str(CHECKOUT / "jobs/train.py"), str(run.recipe))
    third = wait_for(lambda: _did(run, 2, 10), "10 steps of a job of Ray's")
    asked = time.time()
    _ray_job("stop", job_id)
    record_property("ray_job_stop_to_end_s", time.time() - asked)
    newest = run.at.latest_checkpoint()
    assert newest is not None
    assert newest.step > max(third.steps)

    with run.running() as job:
        said = job.end()
    assert job.process.returncode == 0, said[-3000:]
    assert run.lost_steps() == [0, 0, 0]
    run.must_have_seen_each_sample_once()


def _did(run: Run, attempt: int, count: int) -> Attempt | None:
    found = run.attempts()
    return found[attempt] if len(found) > attempt and len(found[attempt].steps) >= count else None


def _ray_job(*arguments: str) -> str:
    """``ray job …``; returns the id of the job that it named."""
    done = subprocess.run([program("ray"), "job", *arguments], check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"raysubmit_\w+", done.stdout + done.stderr)
    assert found, done.stdout + done.stderr
    return found.group()
