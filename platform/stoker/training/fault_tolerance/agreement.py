"""Agreement among a run's ranks, in step: checkpoint now, stop, or restart.

Reasons come up on one rank only: rank 0's clock makes a checkpoint due, the lease says that the driver was asked to
stop, a node drains, a process gets SIGTERM. Acting on them needs all ranks at the same step. So every rank encodes its
requests in a few integers that are all-reduced (maximum) in the background: started at one step, read at a later one,
when the result has long arrived. The step loop waits neither for a device nor for a slower rank. Rank 0 chooses the
number of steps in between so that it takes about half a second, and sends it along.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from dataclasses import astuple, dataclass
from typing import Any

import ray
import torch
import torch.distributed as dist

from stoker.errors import StorageError
from stoker.storage import Location
from stoker.training.fault_tolerance.lease import read_holder

__all__ = ["NOTHING", "Agreement", "Decision", "RequestWatcher", "listen_for_sigterm", "request_restart"]

logger = logging.getLogger(__name__)

_INTERVAL_S = 0.5
_POLL_INTERVAL_S = 1.0
_MAX_INTERVAL_STEPS = 1000

_restart_requested = threading.Event()


def listen_for_sigterm() -> None:
    """Handle SIGTERM as a request to checkpoint and restart. Call it in a worker's main thread."""
    signal.signal(signal.SIGTERM, lambda *_: _restart_requested.set())


def request_restart() -> None:
    """Request from within this process that all ranks checkpoint and restart, for instance to resize the run."""
    _restart_requested.set()


@dataclass(frozen=True)
class Decision:
    """What all ranks do after the step at which they read this."""

    saves: bool = False
    """store a checkpoint"""
    stops: bool = False
    """store a checkpoint and stop: the driver was asked to"""
    restarts: bool = False
    """store a checkpoint and exit to be restarted: a process or node is about to go, or the run is being resized"""
    lease_is_lost: bool = False
    """exit: another driver holds the run's lease"""
    loss_is_not_finite: bool = False
    """find the step at which the loss became NaN or infinite"""

    def __bool__(self) -> bool:
        return self != NOTHING


NOTHING = Decision()


class RequestWatcher:
    """Polls once a second, in a daemon thread, for reasons to checkpoint, stop or restart, until :meth:`close`.

    Rank 0 reads the lease at ``lease`` and expects ``token`` in it (an empty token reads nothing), and requests a
    checkpoint every ``save_every_s`` seconds. With ``watches_node``, set on one rank per node, it asks Ray whether the
    node is draining.
    """

    def __init__(
        self, rank: int, *, lease: Location, token: str, save_every_s: float | None = None, watches_node: bool = False
    ) -> None:
        self._rank, self._lease, self._token = rank, lease.with_timeout(_POLL_INTERVAL_S), token
        self._save_every_s, self._saved_at = save_every_s, time.monotonic()
        self._watches_node = watches_node
        self._stops = self._lease_is_lost = self._drains = self._loss_is_not_finite = False
        self._ended = threading.Event()
        threading.Thread(target=self._poll, name="stoker-watch", daemon=True).start()

    def close(self) -> None:
        self._ended.set()

    def report_non_finite(self) -> None:
        """Note that this rank read a loss that is NaN or infinite."""
        self._loss_is_not_finite = True

    def take(self) -> Decision:
        """This rank's requests; those for a checkpoint and about a loss are returned once."""
        saves = self._save_every_s is not None and time.monotonic() - self._saved_at >= self._save_every_s
        if saves:
            self._saved_at = time.monotonic()
        not_finite, self._loss_is_not_finite = self._loss_is_not_finite, False
        restarts = self._drains or _restart_requested.is_set()
        return Decision(saves, self._stops, restarts, self._lease_is_lost, not_finite)

    def _poll(self) -> None:
        while True:
            if self._rank == 0 and self._token:
                self._read_lease()
            if self._watches_node and not self._drains:
                self._drains = _is_draining()
            if self._ended.wait(_POLL_INTERVAL_S):
                return

    def _read_lease(self) -> None:
        try:
            holder = read_holder(self._lease)
        except StorageError as error:  # the store is unavailable, which the steps notice themselves
            logger.debug("cannot read the lease: %s", error)
            return
        if holder is not None:
            self._lease_is_lost = holder.token != self._token
            self._stops = not self._lease_is_lost and holder.stops


def _is_draining() -> bool:
    try:
        draining = ray._private.state.state.get_draining_nodes() or {}
        return ray.get_runtime_context().get_node_id() in draining
    except Exception as error:  # the head restarts or answers late: Ray ends the workers where it matters
        logger.debug("cannot ask whether this node is draining: %s", error)
        return False


class Agreement:
    """Combines the requests of all ranks. Every rank calls :meth:`at_step` after the same steps."""

    def __init__(self, watcher: RequestWatcher) -> None:
        self._watcher = watcher
        self._is_first = dist.get_rank() == 0
        # a group of its own: gloo on the host next to NCCL, and independent of DDP's order of collectives
        self._group: Any = dist.new_group(backend="gloo") if dist.get_world_size() > 1 else None
        self._requests = torch.zeros(6, dtype=torch.int64)
        self._work: dist.Work | None = None
        self._due = 0
        self._started: tuple[int, float] | None = None  # step and time

    def at_step(self, step: int) -> Decision:
        """What all ranks agreed on some steps ago; ``step`` counts from the start of the run and only grows."""
        if step < self._due:
            return NOTHING
        decision, interval = NOTHING, 1
        if self._work is not None:
            self._work.wait()
        if self._started is not None:
            *flags, interval = self._requests.tolist()
            decision = Decision(*map(bool, flags))
        own = astuple(self._watcher.take())
        self._requests = torch.tensor([*map(int, own), self._next_interval(step)])
        self._started = step, time.monotonic()
        if self._group is not None:
            self._work = dist.all_reduce(self._requests, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        self._due = step + max(1, interval)
        return decision

    def close(self) -> None:
        """Wait for the all-reduce in flight; every rank must call it."""
        if self._work is not None:
            self._work.wait()
        self._watcher.close()

    def _next_interval(self, step: int) -> int:
        """Steps until the next exchange, as rank 0 proposes; 0 on the other ranks."""
        if not self._is_first or self._started is None:
            return 0
        before, at = self._started
        step_s = (time.monotonic() - at) / max(1, step - before)
        return min(_MAX_INTERVAL_STEPS, max(1, int(_INTERVAL_S / max(1e-6, step_s))))
