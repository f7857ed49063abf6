"""A run whose loss turns into no number, and a run of which one rank stands still."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from conftest import Store
from faults.runs import Run
from stoker.embedded import Instance

pytestmark = [pytest.mark.long, pytest.mark.store, pytest.mark.cluster]


def test_a_loss_that_is_no_number_ends_the_run_after_as_many_steps_left_out_as_allowed(
    roomy: Instance, store: Store, tmp_path: Path
) -> None:
    run = Run(store, tmp_path, epochs=1)
    with run.running("optimizer.lr=1e30", "on_nan=skip", "nan_skips=1") as job:
        said = job.end()
    assert job.process.returncode == 2, said[-3000:]
    assert "its batch will be skipped (1 of at most 1)" in said
    (error,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert "run 'run': the loss turned NaN or infinite at step" in error
    assert "1 steps were skipped before (nan_skips)" in error
    told = json.loads((run.at.location / "not_finite.json").read())
    assert len(told["samples"]) == len(told["keys"]) == 16
    assert run.at.latest_checkpoint() is None, "a checkpoint of no numbers was kept"
    assert len(run.attempts()) == 2


def test_a_rank_that_stands_still_is_shown_with_all_stacks_and_the_run_goes_on(
    roomy: Instance, store: Store, tmp_path: Path, record_property: pytest.RecordProperty
) -> None:
    run = Run(store, tmp_path, epochs=1)
    with run.running("workers.stall_timeout_s=8", "storage_timeout_s=5") as job:
        first = run.wait_for_steps(job, 0, 25)
        os.kill(first.pids[1], signal.SIGSTOP)
        frozen = time.time()
        second = run.wait_for_steps(job, 1, 1)
        record_property("frozen_to_next_step_s", second.first_at - frozen)
        said = job.end()
    assert job.process.returncode == 0, said[-3000:]
    assert "rank 0 made no progress for 8 s (workers.stall_timeout_s); dumping the stacks of its threads" in said
    assert "stoker/training/step/stepper.py" in said, "the stacks are not there"
    run.must_have_seen_each_sample_once()
