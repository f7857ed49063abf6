"""An elastic run on two nodes: one is killed, another comes, and that one is drained, all in mid-epoch."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from conftest import Store
from faults.runs import Run, wait_for
from stoker.embedded import Instance
from stoker.embedded.processes import program


class Node:
    """A second raylet on this machine, with a folder of its own, joined to the cluster's head."""

    def __init__(self, cluster: Instance, cpus: int) -> None:
        address = cluster.environment()["RAY_ADDRESS"]
        command = [program("ray"), "start", "--block", f"--address={address}", f"--num-cpus={cpus}"]
        environment = {**os.environ, **cluster.environment(), "STOKER_PART": "node"}
        self.process = subprocess.Popen(
            [*command, "--node-ip-address=127.0.0.1", "--min-worker-port=0", "--max-worker-port=0"],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def processes(self) -> list[psutil.Process]:
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)] if self.process.poll() is None else []

    def kill(self) -> float:
        for process in self.processes():
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.Error:
                continue
        self.process.wait()
        return time.time()


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    made: list[Node] = []
    yield made
    for node in made:
        node.kill()


@pytest.mark.store
@pytest.mark.cluster
def test_an_elastic_run_goes_on_with_the_nodes_that_are_there(
    roomy: Instance, store: Store, tmp_path: Path, nodes: list[Node], record_property: pytest.RecordProperty
) -> None:
    cpus = roomy.settings.ray_cpus - 1  # one worker a node
    run = Run(store, tmp_path, epochs=14)
    nodes.append(Node(roomy, cpus))
    elastic = (f"workers.cpus={cpus}", "workers.min=1", "workers.max=2", "workers.resize_every_s=5")
    with run.running(*elastic) as job:

        def ranks(attempt: int) -> bool:
            found = run.attempts()
            return len(found) > attempt and len(found[attempt].pids) == 2

        at = 0
        wait_for(run.attempts, "first step", job=job)
        while len(run.attempts()[at].pids) < 2:  # the node may come after the run has begun
            at += 1
            wait_for(lambda at=at: len(run.attempts()) > at, "the second node in the run", job=job)
        run.wait_for_steps(job, at, 30)
        killed = nodes[0].kill()
        alone = run.wait_for_steps(job, at + 1, 30)
        record_property("node_killed_to_next_step_s", alone.first_at - killed)
        assert len(alone.pids) == 1

        nodes.append(Node(roomy, cpus))
        came = time.time()
        grown = run.wait_for_steps(job, at + 2, 30)
        record_property("node_came_to_next_step_s", grown.first_at - came)
        assert len(grown.pids) == 2
        assert run.lost_steps()[-1] == 0, "growing lost work"
        said = job.end()
    assert job.process.returncode == 0, said[-3000:]
    run.must_have_seen_each_sample_once()
