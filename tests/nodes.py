"""A second node of a cluster, on this machine, that can be lost and drained."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import psutil

from stoker.embedded import RayCluster
from stoker.embedded.processes import Part, Started, program, wait_until
from stoker.errors import ClusterError

__all__ = ["Node", "second_node"]

# `ray start` joins no node to a head on loopback, so its insides are used, as by Ray's own tests of many nodes.
_PROGRAM = """
import signal, sys
from ray._private.node import Node
from ray._private.parameter import RayParams
own = RayParams(
    gcs_address=sys.argv[1],
    node_ip_address="127.0.0.1",
    num_cpus=int(sys.argv[2]),
    num_gpus=int(sys.argv[3]),
    object_store_memory=100_000_000,
    min_worker_port=0,
    max_worker_port=0,
    node_manager_port=0,
    include_log_monitor=False,
)
own.dashboard_agent_listen_port = None
node = Node(own, head=False, shutdown_at_exit=True, spawn_reaper=True)
print("joined as", node.node_id, flush=True)
signal.pause()
"""


@dataclass(frozen=True)
class Node:
    """A raylet and its workers; ``cluster`` is that of its head."""

    started: Started
    cluster: RayCluster
    log: Path

    @property
    def id(self) -> str:
        """Ray's id of it."""
        return self.log.read_text(errors="replace").rpartition("joined as ")[2].split()[0]

    def kill(self) -> float:
        """SIGKILL every process of it, as when its power goes; returns the time."""
        with contextlib.suppress(psutil.NoSuchProcess):
            top = psutil.Process(self.started.pid)
            for process in [*top.children(recursive=True), top]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGKILL)
        return time.time()

    def drain(self, within_s: int) -> float:
        """Tell the head that the node goes in ``within_s`` seconds, as a cloud's notice does; returns the time."""
        address = self.cluster.environment()["RAY_ADDRESS"]
        options = ("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "the spot machine goes")
        command = [program("ray"), "drain-node", "--address", address, "--node-id", self.id, *options]
        subprocess.run(
            [*command, "--deadline-remaining-seconds", str(within_s)],
            check=True,
            capture_output=True,
            env={**os.environ, **self.cluster.environment()},
        )
        return time.time()


@contextlib.contextmanager
def second_node(
    cluster: RayCluster, cpus: int = 1, gpus: int = 0, environment: Mapping[str, str] = MappingProxyType({})
) -> Iterator[Node]:
    """Joined to the head of ``cluster``; killed at the block's end, if it was not before.

    It says that it has ``gpus``, and its workers have the head's variables and those of ``environment``.
    """
    head = cluster.process()
    if head is None:
        raise ClusterError("the cluster that was started just now is not there; see its log")
    log = cluster.folder.logs / f"node-{time.monotonic_ns()}.log"
    started = Part(cluster.folder.instance, "cluster").start(
        [sys.executable, "-c", _PROGRAM, cluster.environment()["RAY_ADDRESS"], str(cpus), str(gpus)],
        environment={**psutil.Process(head.pid).environ(), **environment},
        folder=cluster.folder.path,
        log=log,
    )
    node = Node(started, cluster, log)
    try:
        wait_until(
            lambda: "joined as" in log.read_text(errors="replace"),
            "the second node",
            timeout_s=90,
            process=started,
            log=log,
        )
        yield node
    finally:
        node.kill()
