"""An elastic run: a second node comes, is killed, comes again and is drained, each in mid-epoch."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from conftest import Store
from faults.runs import Attempt, Job, Run, wait_for
from nodes import second_node
from stoker.embedded import Instance

_PROMPT_S = 60


@pytest.mark.long
@pytest.mark.store
@pytest.mark.cluster
def test_an_elastic_run_goes_on_with_the_nodes_that_are_there(
    roomy: Instance, store: Store, tmp_path: Path, record_property: pytest.RecordProperty
) -> None:
    cpus = roomy.settings.ray_cpus - 1  # one worker a node
    run = Run(store, tmp_path, epochs=25)
    elastic = (f"workers.cpus={cpus}", "workers.min=1", "workers.max=2", "workers.resize_every_s=3")
    with run.running(*elastic) as job:
        sizes = _Sizes(run, job)
        sizes.next(1)
        with second_node(roomy.cluster, cpus) as node:
            came = time.time()
            grown = sizes.next(2)
            record_property("node_came_to_next_step_s", grown.first_at - came)
            assert run.lost_steps()[-1] == 0, "growing lost work"

            killed = node.kill()
            alone = sizes.next(1)
            record_property("node_killed_to_next_step_s", alone.first_at - killed)
            record_property("node_killed_steps_redone", run.lost_steps()[-1])

        with second_node(roomy.cluster, cpus) as node:
            sizes.next(2)
            asked = node.drain(_PROMPT_S)
            alone = sizes.next(1)
            record_property("node_drained_to_next_step_s", alone.first_at - asked)
            assert alone.first_at - asked < _PROMPT_S, "the node would have gone under the run"
            assert run.lost_steps()[-1] == 0, "draining lost work"
            said = job.end(timeout_s=400)
    assert job.process.returncode == 0, said[-3000:]
    run.must_have_seen_each_sample_once()


@dataclass
class _Sizes:
    """Looks at the groups of workers in turn."""

    run: Run
    job: Job
    looked_at: int = 0

    def next(self, size: int) -> Attempt:
        """The first group not looked at yet that has ``size`` workers, as soon as it did some steps."""
        return wait_for(lambda: self._found(size), f"10 steps of {size} workers", job=self.job)

    def _found(self, size: int) -> Attempt | None:
        attempts = self.run.attempts()
        for index, attempt in enumerate(attempts[self.looked_at :], self.looked_at):
            if len(attempt.pids) == size and len(attempt.steps) >= 10:
                self.looked_at = index + 1
                return attempt
        return None
