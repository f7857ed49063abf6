"""A run's metrics, as Prometheus scrapes them from a node of the cluster."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from stoker.embedded import Instance

PROGRAM = """
import sys, time, urllib.request
import ray

@ray.remote(num_cpus=0)
class Rank:
    def report(self, tests):
        sys.path.insert(0, tests)
        from test_trackers import RECORD, snapshot
        from stoker.training.telemetry.prometheus import RunMetrics
        metrics = RunMetrics("curves", 3)
        metrics.snapshot(snapshot(4))
        metrics.epoch(RECORD)
        metrics.reads({"read_bytes": 1000.0, "read_retries": 0.0, "most_held_bytes": 7.0})
        metrics.reads({"read_bytes": 1500.0, "read_retries": 2.0, "most_held_bytes": 5.0})
        return ray.get_runtime_context().get_node_id()

ray.init(log_to_driver=False)
rank = Rank.remote()
where = ray.get(rank.report.remote(sys.argv[1]))
(node,) = [node for node in ray.nodes() if node["NodeID"] == where]  # the list keeps nodes that are gone
address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
until = time.monotonic() + 120
lines = []
wanted = "train_loss train_share train_seconds validation_accuracy macro_accuracy read_bytes read_retries most_held"
wanted = wanted.split()
while time.monotonic() < until and not all(any(name in line for line in lines) for name in wanted):
    text = urllib.request.urlopen(address, timeout=10).read().decode()
    lines = [line for line in text.splitlines() if line.startswith("ray_stoker_") and 'run="curves"' in line]
    time.sleep(0.5)
print("\\n".join(lines))
"""


@pytest.mark.store
@pytest.mark.cluster
def test_progress_goodput_and_read_counters_are_served_by_the_nodes_agent(cluster: Instance) -> None:
    command = [sys.executable, "-c", PROGRAM, str(Path(__file__).parent)]
    done = subprocess.run(command, check=False, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]

    def value(name: str, *labels: str) -> float:
        lines = [line for line in done.stdout.splitlines() if line.startswith(f"ray_{name}{{")]
        (found,) = [line for line in lines if all(label in line for label in labels)]
        return float(found.split()[-1])

    assert value("stoker_train_loss") == 0.5
    assert value("stoker_train_share", 'kind="compute"') == 1.0
    assert value("stoker_train_seconds_total", 'kind="compute"') == 12.0
    assert value("stoker_train_validation_accuracy") == 0.875
    assert value("stoker_train_validation_macro_accuracy") == 0.625
    assert value("stoker_loader_read_bytes_total", 'rank="3"') == 1500.0
    assert value("stoker_loader_read_retries_total", 'rank="3"') == 2.0
    assert value("stoker_loader_most_held_bytes", 'rank="3"') == 5.0
