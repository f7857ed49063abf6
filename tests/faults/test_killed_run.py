"""A run whose worker, controller and driver are killed with SIGKILL, one after the other."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from conftest import Store
from faults.runs import STEPS, Run, kill, processes_of
from stoker.embedded import Instance
from stoker.training.telemetry.events import read_events

EPOCHS = 6


@pytest.mark.store
@pytest.mark.cluster
def test_a_run_survives_the_death_of_a_worker_of_its_controller_and_of_its_driver(
    roomy: Instance, store: Store, tmp_path: Path, record_property: pytest.RecordProperty
) -> None:
    run = Run(store, tmp_path, epochs=EPOCHS)
    with run.running() as job:
        first = run.wait_for_steps(job, 0, 25)
        refused = run.start().end()
        assert run.jobs[1].process.returncode == 2
        assert f"already has a driver: process {job.process.pid} on" in refused

        killed = kill(first.pids[1])
        second = run.wait_for_steps(job, 1, 25)
        record_property("worker_killed_to_next_step_s", second.first_at - killed)

        controllers = processes_of(roomy, "ray::_Controller")
        assert len(controllers) == 1
        killed = kill(controllers[0].pid)
        third = run.wait_for_steps(job, 2, 25)
        record_property("controller_killed_to_next_step_s", third.first_at - killed)

        kill(job.process.pid)
        job.process.wait()

    began = time.time()
    with run.running("workers.min=1", "workers.max=1") as job:
        fourth = run.wait_for_steps(job, 3, 1)
        record_property("driver_submitted_again_to_first_step_s", fourth.first_at - began)
        said = job.end()
    assert job.process.returncode == 0, said[-3000:]
    assert "resuming from step" in said
    run.must_have_seen_each_sample_once()
    result = run.at.result()
    assert result is not None
    assert (result.checkpoint, result.metrics.samples) == (EPOCHS * STEPS, 40)
    with run.running() as job:
        assert "already finished" in job.end()
    attempts = [event for event in read_events(run.at.location / "events") if event["kind"] == "attempt"]
    whys = [event.get("why", "") for event in attempts]
    assert [bool(why) for why in whys] == [False, True, True, False], "the driver's own death nobody saw"
    assert "failure 1, 3 allowed" in whys[1]
    assert "Ray's controller died" in whys[2]
