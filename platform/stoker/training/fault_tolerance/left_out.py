"""Nodes that a run no longer uses, because something of them failed under it.

They are kept in Ray's head under a key of the run, so that a controller that was started anew knows them too. A node
that restarts gets a new id from Ray, and with it another chance.
"""

from __future__ import annotations

import contextlib
import json
import logging
from dataclasses import dataclass

import ray
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put

from stoker.training.fault_tolerance.capacity import Resources, can_grow, usable_nodes, workers_that_fit

__all__ = ["LeftOutNodes", "StoreProbe", "forget_left_out", "left_out_nodes", "run_key"]

logger = logging.getLogger(__name__)

_PROBE_TIMEOUT_S = 5.0


class LeftOutNodes:
    """The nodes that the run ``key`` leaves out, as long as the others have room for its ``least`` workers."""

    def __init__(self, key: str, per_worker: Resources, least: int) -> None:
        self._key, self._per_worker, self._least = key, per_worker, least

    def add(self, node: str) -> bool:
        """Leave out ``node``, an id of Ray's. False, and nothing is changed, if the run needs it."""
        before = left_out_nodes(self._key)
        others = {name: total for name, total in usable_nodes().items() if name not in before | {node}}
        if not node or not (can_grow() or workers_that_fit(self._per_worker, others) >= self._least):
            return False
        try:
            _internal_kv_put(_stored(self._key), json.dumps(sorted(before | {node})))
        except ray.exceptions.RayError as error:
            logger.debug("cannot record that node %s is left out: %s", node, error)
            return False
        return True


@dataclass(frozen=True)
class StoreProbe:
    """Whether, from this process, the data set can be read and the run's folder be written, within seconds."""

    data: str
    """URL of the data set"""
    run: str
    """URL of the run's folder"""

    def __call__(self) -> bool:
        from stoker.dataset.format.manifest import read_manifest  # what imports pyarrow or s3fs is rarely needed here
        from stoker.errors import StokerError
        from stoker.storage import locate

        try:
            read_manifest(locate(self.data, timeout_s=_PROBE_TIMEOUT_S))
            probe = locate(self.run, timeout_s=_PROBE_TIMEOUT_S) / "probe"
            probe.write(b"{}")
            probe.delete()
        except (StokerError, OSError) as error:
            logger.debug("the store does not answer here either: %s", error)
            return False
        return True


def left_out_nodes(key: str) -> frozenset[str]:
    """Ids of the nodes that the run ``key`` leaves out."""
    try:
        stored = _internal_kv_get(_stored(key))
        return frozenset(json.loads(stored)) if stored else frozenset()
    except (ray.exceptions.RayError, ValueError) as error:
        logger.debug("the nodes that the run leaves out are unknown: %s", error)
        return frozenset()


def forget_left_out(key: str) -> None:
    """Delete what is recorded under ``key``."""
    with contextlib.suppress(ray.exceptions.RayError):
        _internal_kv_del(_stored(key))


def run_key(attempt: str) -> str:
    """The run's key of ``attempt``, the name of one of its trainers: ``<key>.<number>``."""
    return attempt.rpartition(".")[0]


def _stored(key: str) -> bytes:
    return f"stoker/left-out/{key}".encode()
