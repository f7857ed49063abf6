"""A cluster of its own for each measurement of a job, as its user would have it, on the benchmark's store.

Ours is what ``make up`` starts (cluster/local.yaml), stock Ray's has none of the variables that are set there. With
``nodes`` the head gives up one CPU, and a second raylet on this machine another.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.train.jobs import Who
from bench.train.ranks import child_environment
from nodes import Node, second_node
from stoker.embedded import RayCluster, Settings, StateFolder
from stoker.embedded.processes import Part

__all__ = ["Cluster", "started"]

_ANY_PORT = {"s3": 0, "gcs": 0, "dashboard": 0, "serve": 0}


@dataclass(frozen=True)
class Cluster:
    """``environment`` is what a driver needs; ``second_node`` is there where it was asked for."""

    environment: dict[str, str]
    part: Part
    second_node: Node | None = None

    def cpu_s(self) -> float:
        """CPU seconds of all its processes that live."""
        total = 0.0
        for process in self.part.processes():
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                total += times.user + times.system
        return total


@contextlib.contextmanager
def started(who: Who, folder: Path, store: dict[str, str], *, nodes: int = 1) -> Iterator[Cluster]:
    """The cluster, ended with all that runs on it when the block is left."""
    known = Settings.read().model_dump() | {"ports": _ANY_PORT, "cpus": 1 if nodes > 1 else 2}
    if who == "stock":
        known["environment"] = {}
    settings = Settings.model_validate(known)
    cluster = RayCluster(StateFolder(folder / f"cluster-{who}"), settings)
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "TORCH_"))}
    try:  # from before the start, which may be interrupted too
        with cluster.folder.lock(), _only(variables):
            cluster.start(store)
        environment = {**child_environment(), **store, **cluster.environment()}
        environment = {n: v for n, v in environment.items() if not n.startswith(("RAY_TRAIN_", "OMP_", "MKL_"))}
        part = Part(cluster.folder.instance, "cluster")
        with second_node(cluster) if nodes > 1 else contextlib.nullcontext() as node:
            yield Cluster(environment, part, node)
    finally:
        with cluster.folder.lock():
            cluster.stop()


@contextlib.contextmanager
def _only(variables: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
