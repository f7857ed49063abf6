"""Worker capacity of the cluster, read from the head node.

Ray's autoscaling coordinator polls the cluster every 20 seconds, counts nodes that died in between, and keeps a dead
run's reservation for 180 seconds; an elastic run that relies on it starts too many workers or too few.
"""

from __future__ import annotations

import socket
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import placement_group_table

__all__ = [
    "Capacity",
    "Resources",
    "can_grow",
    "capacity_for",
    "nearest_node",
    "nodes_and_types",
    "silent_nodes",
    "usable_nodes",
    "useful_workers",
    "workers_that_fit",
]

Resources = Mapping[str, float]
_RESOLUTION = 1e-4  # Ray counts resources in ten-thousandths
_PROBE_TIMEOUT_S = 2.0
_MAX_PROBES = 64


@dataclass(frozen=True)
class Capacity:
    """Numbers of workers."""

    now: int
    """that fit next to everything else that runs, this run's own workers counted as free"""
    total: int
    """that would fit if nothing else ran"""


def capacity_for(run_name: str, per_worker: Resources, left_out: Collection[str] = ()) -> Capacity:
    """Capacity for workers of ``per_worker`` resources each, without the nodes whose ids are in ``left_out``.

    ``run_name/…`` are the run's own placement groups.
    """
    usable = {node: total for node, total in usable_nodes().items() if node not in left_out}
    available = ray._private.state.available_resources_per_node()
    free = {node: dict(available.get(node, {})) for node in usable}
    for group in placement_group_table().values():
        if group["name"].startswith(f"{run_name}/") and group["state"] != "REMOVED":
            for bundle, node in group["bundles_to_node_id"].items():
                for name, amount in group["bundles"][bundle].items() if node in usable else ():
                    free[node][name] = free[node].get(name, 0.0) + amount
    return Capacity(workers_that_fit(per_worker, free), workers_that_fit(per_worker, usable))


def usable_nodes() -> dict[str, Resources]:
    """Total resources by node id, of the nodes that are alive, reachable and not draining."""
    draining, silent = ray._private.state.state.get_draining_nodes() or {}, silent_nodes()
    return {
        node["NodeID"]: node["Resources"]
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] not in draining and node["NodeID"] not in silent
    }


def silent_nodes() -> set[str]:
    """Ids of the nodes that the head takes for alive and whose raylet accepts no connection.

    The head marks a node dead after some failed health checks, by default 15 seconds after its raylet was killed and a
    minute after it lost power, and until then would place workers there.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    with ThreadPoolExecutor(_MAX_PROBES) as pool:
        answers = pool.map(_accepts_connections, nodes)
        return {node["NodeID"] for node, answer in zip(nodes, answers, strict=True) if not answer}


def _accepts_connections(node: Mapping[str, Any]) -> bool:
    try:
        socket.create_connection(
            (node["NodeManagerAddress"], node["NodeManagerPort"]), timeout=_PROBE_TIMEOUT_S
        ).close()
    except OSError:
        return False
    return True


def workers_that_fit(per_worker: Resources, nodes: Mapping[str, Resources]) -> int:
    """How many workers fit, each whole on one of ``nodes``; the amounts in ``per_worker`` are above 0."""
    return sum(_workers_on(free, per_worker) for free in nodes.values())


def _workers_on(node: Resources, per_worker: Resources) -> int:
    return min(int((node.get(name, 0.0) + _RESOLUTION / 2) / amount) for name, amount in per_worker.items())


def nodes_and_types() -> list[Resources]:
    """Resources of the nodes that are alive, and of the types of node that an autoscaler may add."""
    return _alive() + [resources for resources, most in _node_types() if most]


def can_grow(per_worker: Resources) -> bool:
    """Whether an autoscaler, as far as it reports its types of node, may add one that holds a worker."""
    there = sum(_holds(node, per_worker) for node in _alive())
    return any(_holds(node, per_worker) and (most < 0 or there < most) for node, most in _node_types())


def _holds(node: Resources, per_worker: Resources) -> bool:
    return _workers_on(node, per_worker) > 0


def _alive() -> list[Resources]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _node_types() -> list[tuple[Resources, int]]:
    """Resources and greatest number of each type of node that an autoscaler reports; below 0 is without a limit."""
    config = ray._private.state.state.get_cluster_config()
    return [(dict(group.resources), group.max_count) for group in config.node_group_configs] if config else []


def nearest_node(per_worker: Resources, nodes: Iterable[Resources]) -> Resources | None:
    """Of ``nodes``, the one that comes nearest to a worker of ``per_worker``; None if one holds it, or there is none.

    Near is how much of the scarcest resource it has, then how much of the others.
    """
    candidates = list(nodes)
    if not candidates or any(_holds(node, per_worker) for node in candidates):
        return None
    nearest = max(candidates, key=lambda n: sorted(n.get(name, 0.0) / want for name, want in per_worker.items()))
    return {name: nearest.get(name, 0.0) for name in per_worker}


def useful_workers(workers: int, micro_batches: int) -> int:
    """The fewest workers that are as fast as ``workers``: a step takes as long as the rank with most micro-batches.

    64 micro-batches take 2 turns on 32 workers as on 63, and one on 64.
    """
    if workers < 1:
        return workers
    turns = -(-micro_batches // workers)
    return -(-micro_batches // turns)
