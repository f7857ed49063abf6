"""A run whose worker is asked to go and whose driver is asked to stop, both with SIGTERM: no step is done twice."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from conftest import Store
from faults.runs import Run
from stoker.embedded import Instance


@pytest.mark.long
@pytest.mark.store
@pytest.mark.cluster
def test_a_run_that_is_asked_to_go_or_to_stop_loses_nothing(
    roomy: Instance, store: Store, tmp_path: Path, record_property: pytest.RecordProperty
) -> None:
    run = Run(store, tmp_path, epochs=2)
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
    assert f"stopped at step {stopped_at} on SIGTERM; submit it again to continue" in said

    with run.running() as job:
        said = job.end()
    assert job.process.returncode == 0, said[-3000:]
    assert run.lost_steps() == [0, 0]
    run.must_have_seen_each_sample_once()
