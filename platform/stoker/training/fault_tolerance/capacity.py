"""How many workers a cluster has room for at this moment, as its head knows it.

Ray's autoscaling coordinator looks at the cluster every 20 seconds, believes in nodes that died meanwhile, and keeps a
dead run's reservation for 180 seconds; an elastic run that asks it starts too many workers or too few.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import placement_group_table

__all__ = ["Capacity", "capacity_for", "silent_nodes", "usable_nodes", "workers_that_fit"]

Resources = Mapping[str, float]
_SHARE = 1e-4  # Ray counts resources in ten-thousandths
_PROBE_S = 2.0
_PROBES = 64


@dataclass(frozen=True)
class Capacity:
    """Numbers of workers."""

    now: int
    """that find room beside everything else that runs, this run's own workers counted as free"""
    empty: int
    """that would find room if nothing else ran"""


def capacity_for(run_name: str, per_worker: Resources) -> Capacity:
    """The room for workers of ``per_worker`` resources each; ``run_name/…`` are the run's own placement groups."""
    usable, available = usable_nodes(), ray._private.state.available_resources_per_node()
    free = {node: dict(available.get(node, {})) for node in usable}
    for group in placement_group_table().values():
        if group["name"].startswith(f"{run_name}/") and group["state"] != "REMOVED":
            for bundle, node in group["bundles_to_node_id"].items():
                for name, amount in group["bundles"][bundle].items() if node in usable else ():
                    free[node][name] = free[node].get(name, 0.0) + amount
    return Capacity(workers_that_fit(per_worker, free), workers_that_fit(per_worker, usable))


def usable_nodes() -> dict[str, Resources]:
    """All that each node has which lives, answers and is not about to go, by the node's id."""
    draining, silent = ray._private.state.state.get_draining_nodes() or {}, silent_nodes()
    return {
        node["NodeID"]: node["Resources"]
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] not in draining and node["NodeID"] not in silent
    }


def silent_nodes() -> set[str]:
    """Ids of the nodes that the head believes in, and whose raylet takes no connection.

    The head gives a node up after some failed health checks, by default 15 seconds after its raylet was killed and a
    minute after its power went, and until then would place workers there.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    with ThreadPoolExecutor(max_workers=min(_PROBES, max(1, len(nodes)))) as pool:
        answers = pool.map(_answers, nodes)
        return {node["NodeID"] for node, answer in zip(nodes, answers, strict=True) if not answer}


def _answers(node: Mapping[str, Any]) -> bool:
    try:
        socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), timeout=_PROBE_S).close()
    except OSError:
        return False
    return True


def workers_that_fit(per_worker: Resources, nodes: Mapping[str, Resources]) -> int:
    """How many find room, each on one of ``nodes``; each needs something (amounts above 0)."""
    return sum(
        min(int((free.get(name, 0.0) + _SHARE / 2) / amount) for name, amount in per_worker.items())
        for free in nodes.values()
    )
