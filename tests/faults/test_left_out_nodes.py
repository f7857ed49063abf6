"""Nodes that cannot do what the others can: the run leaves them out and says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from conftest import Store
from faults.runs import Run
from nodes import second_node
from stoker.embedded import Instance

pytestmark = [pytest.mark.long, pytest.mark.store, pytest.mark.cluster]


def test_a_node_that_does_not_reach_the_store_is_left_out_and_the_run_goes_on(
    roomy: Instance, store: Store, tmp_path: Path
) -> None:
    cpus = roomy.settings.ray_cpus - 1  # one worker a node
    nowhere = {name: "http://127.0.0.1:9" for name in store.environment() if name.startswith("AWS_ENDPOINT_URL")}
    assert nowhere
    run = Run(store, tmp_path, epochs=1)
    overrides = (f"workers.cpus={cpus}", "workers.min=1", "workers.max_failures=0", "storage_timeout_s=4")
    with second_node(roomy.cluster, cpus, environment=nowhere), run.running(*overrides) as job:
        said = job.end()
    assert job.process.returncode == 0, said[-3000:]
    assert "does not reach the store, which answers here" in said
    assert "the node is left out for the rest of the run" in said
    assert [len(attempt.pids) for attempt in run.attempts()] == [1]
    run.must_have_seen_each_sample_once()


def test_nodes_whose_gpu_torch_cannot_use_are_left_out_until_none_is_left(
    roomy: Instance, store: Store, tmp_path: Path
) -> None:
    run = Run(store, tmp_path, epochs=1)
    overrides = ("workers.gpus=1", "workers.min=1", "workers.max=1", "workers.max_failures=0")
    with second_node(roomy.cluster, 1, 1), second_node(roomy.cluster, 1, 1), run.running(*overrides) as job:
        said = job.end()
    assert job.process.returncode == 2, said[-3000:]
    why = "torch finds no usable GPU, although Ray counts one (nvidia-smi says more) on node 127.0.0.1"
    assert f"restarting the workers: {why}; the node is left out for the rest of the run" in said
    assert f"stopping the run: {why}, which the run cannot do without; that was failure 1 of 0 allowed" in said


def test_a_worker_that_no_node_is_large_enough_for_is_said(roomy: Instance, store: Store, tmp_path: Path) -> None:
    run = Run(store, tmp_path, epochs=1)
    environment = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "2"}
    with run.running("workers.min=1", "workers.max=1", "workers.cpus=4000", **environment) as job:
        nearest = f"a worker asks for 4000 CPU, and the node that comes nearest has {roomy.settings.ray_cpus} CPU"
        run.wait_until_said(job, f"no room for the workers: {nearest}; unless the autoscaler brings a larger one")
