"""A run that is asked to stop, whose worker is asked to go, and whose store goes away for a while and for good."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from conftest import Store
from faults.runs import Run
from stoker.embedded import Instance

PATIENCE = ("patience_s=12", "workers.hang_s=100")


@contextmanager
def store_away(store: Store) -> Iterator[None]:
    """Inside, the store takes connections and answers nothing."""
    processes = store.object_store._part.processes()
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            process.resume()


@pytest.mark.store
@pytest.mark.cluster
def test_a_run_that_is_asked_to_stop_loses_nothing_and_one_without_store_waits(
    roomy: Instance, store: Store, tmp_path: Path, record_property: pytest.RecordProperty
) -> None:
    run = Run(store, tmp_path, epochs=4)
    with run.running(*PATIENCE) as job:
        first = run.wait_for_steps(job, 0, 10)
        os.kill(first.pids[1], signal.SIGTERM)
        asked = time.time()
        second = run.wait_for_steps(job, 1, 10)
        record_property("worker_sigterm_to_next_step_s", second.first_at - asked)
        assert run.lost_steps() == [0]

        with store_away(store):
            time.sleep(6)
        done = len(run.attempts()[1].steps)
        run.wait_for_steps(job, 1, done + 60)  # past the blocks that were read ahead, and past a checkpoint
        assert len(run.attempts()) == 2

        asked = time.time()
        job.process.terminate()
        said = job.end()
        record_property("driver_sigterm_to_end_s", time.time() - asked)
    assert job.process.returncode == 128 + signal.SIGTERM, said[-3000:]
    stopped_at = max(run.attempts()[1].steps) + 1
    assert f"stopped at step {stopped_at} on SIGTERM; submit it again to continue" in said

    with run.running(*PATIENCE) as job:
        third = run.wait_for_steps(job, 2, 10)
        assert min(third.steps) == stopped_at
        with store_away(store):
            said = job.end()
    assert job.process.returncode == 2, said[-3000:]
    assert "error: cannot " in said
    assert "no good answer in 12 s" in said

    with run.running(*PATIENCE) as job:
        said = job.end()
    assert job.process.returncode == 0, said[-3000:]
    run.must_have_seen_each_sample_once()
    assert not [process for process in psutil.process_iter() if process.pid in second.pids.values()]
