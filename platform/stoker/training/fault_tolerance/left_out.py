"""Nodes that a run no longer uses, because something of them failed under it.

They are kept in Ray's head under a key of the run, so that a controller that was started anew knows them too. A node
that restarts gets a new id from Ray, and with it another chance.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from stoker.training.fault_tolerance import head
from stoker.training.fault_tolerance.capacity import Resources, can_grow, capacity_for

__all__ = ["LeftOutNodes", "StoreProbe", "forget_left_out", "left_out_nodes", "run_key"]

logger = logging.getLogger(__name__)

_PROBE_TIMEOUT_S = 5.0


class LeftOutNodes:
    """The nodes that a run leaves out, as long as the others have room now for its ``least`` workers.

    ``attempt`` is the name of the run's trainer, whose own workers count as gone.
    """

    def __init__(self, attempt: str, per_worker: Resources, least: int) -> None:
        self._attempt, self._key, self._per_worker, self._least = attempt, run_key(attempt), per_worker, least

    def add(self, node: str) -> bool:
        """Leave out ``node``, an id of Ray's. False, and nothing is changed, if the run needs it."""
        if not node:
            return False
        left_out = left_out_nodes(self._key) | {node}
        room = capacity_for(self._attempt, self._per_worker, left_out).now
        if room < self._least and not can_grow(self._per_worker):
            return False
        return head.write(_stored(self._key), sorted(left_out))


@dataclass(frozen=True)
class StoreProbe:
    """Whether, from this process, the data set can be read and the run's folder be written, within seconds."""

    data: str
    """URL of the data set"""
    run: str
    """URL of the run's folder"""

    def __call__(self, url: str) -> bool:
        """``url`` is what a worker could not reach: one of the two, or below them; of others nothing is known."""
        from stoker.dataset.format.manifest import read_manifest  # what imports pyarrow or s3fs is rarely needed here
        from stoker.errors import StokerError
        from stoker.storage import locate

        if not f"{url}/".startswith((f"{locate(self.data).url}/", f"{locate(self.run).url}/")):
            return False
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
    return frozenset(head.read(_stored(key)) or ())


def forget_left_out(key: str) -> None:
    """Delete what is recorded under ``key``."""
    head.forget(_stored(key))


def run_key(attempt: str) -> str:
    """The run's key of ``attempt``, the name of one of its trainers: ``<key>.<number>``."""
    return attempt.rpartition(".")[0]


def _stored(key: str) -> str:
    return f"left-out/{key}"
