"""What the ranks of a run agree on beside the step: to store a checkpoint, to hand over, to end.

Reasons come up on one rank only: rank 0's clock says that a checkpoint is due, the lease says that the driver wants the
run to end, a node is told to drain, a process gets SIGTERM. Acting on them needs all ranks at the same step. So every
rank puts its reasons into a few integers that are reduced (maximum) over all ranks beside the step: asked for at one
step, read at a later one, when the answer has long been there. The step loop neither waits for a device nor for a
slower rank. How many steps lie between is chosen by rank 0 so that it is about half a second, and travels along.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from dataclasses import dataclass
from typing import Any

import ray
import torch
import torch.distributed as dist

from stoker.errors import StorageError
from stoker.storage import Location
from stoker.training.fault_tolerance.lease import read_holder

__all__ = ["NOTHING", "Agreed", "Agreement", "Watch", "ask_to_hand_over", "listen_for_sigterm"]

logger = logging.getLogger(__name__)

_APART_S = 0.5
_LOOK_EVERY_S = 1.0
_MOST_STEPS = 1000

_goes = threading.Event()


def listen_for_sigterm() -> None:
    """Take SIGTERM as a wish to hand over. Called in the main thread of a worker."""
    signal.signal(signal.SIGTERM, lambda *_: _goes.set())


def ask_to_hand_over() -> None:
    """From within this process: this rank wants all to hand over, because there is to be another number of them."""
    _goes.set()


@dataclass(frozen=True)
class Agreed:
    """What all ranks do after the step at which they read this."""

    saves: bool = False
    """store a checkpoint"""
    stops: bool = False
    """store a checkpoint and end: the driver was asked to stop"""
    hands_over: bool = False
    """store a checkpoint and end, to be started again: a process or node is about to go, or more workers find room"""
    is_lost: bool = False
    """end: another driver holds the run's lease"""
    not_finite: bool = False
    """look at which step the loss stopped being a number"""

    def __bool__(self) -> bool:
        return self != NOTHING


NOTHING = Agreed()


class Watch:
    """Looks for reasons once a second, in a thread of its own, which ends with the process or :meth:`close`.

    Rank 0 reads the lease at ``lease`` and expects to find ``token`` there (no token: nothing is read), and asks for a
    checkpoint every ``save_every_s`` seconds. ``watches_node``, of one rank a node, asks Ray whether the node drains.
    """

    def __init__(
        self, rank: int, *, lease: Location, token: str, save_every_s: float | None = None, watches_node: bool = False
    ) -> None:
        self._rank, self._lease, self._token = rank, lease.with_timeout(_LOOK_EVERY_S), token
        self._save_every_s, self._saved_at = save_every_s, time.monotonic()
        self._watches_node = watches_node
        self._stops = self._is_lost = self._drains = self._not_finite = False
        self._ended = threading.Event()
        threading.Thread(target=self._look_on, name="stoker-watch", daemon=True).start()

    def close(self) -> None:
        self._ended.set()

    def found_not_finite(self) -> None:
        """This rank read a loss that is no number."""
        self._not_finite = True

    def take(self) -> Agreed:
        """This rank's reasons; those for a checkpoint and a loss are told once."""
        saves = self._save_every_s is not None and time.monotonic() - self._saved_at >= self._save_every_s
        if saves:
            self._saved_at = time.monotonic()
        not_finite, self._not_finite = self._not_finite, False
        return Agreed(saves, self._stops, self._drains or _goes.is_set(), self._is_lost, not_finite)

    def _look_on(self) -> None:
        while True:
            if self._rank == 0 and self._token:
                self._read_lease()
            if self._watches_node and not self._drains:
                self._drains = _is_draining()
            if self._ended.wait(_LOOK_EVERY_S):
                return

    def _read_lease(self) -> None:
        try:
            holder = read_holder(self._lease)
        except StorageError as error:  # the store is away; the steps find out themselves
            logger.debug("the lease cannot be read: %s", error)
            return
        if holder is not None:
            self._is_lost = holder.token != self._token
            self._stops = not self._is_lost and holder.stops


def _is_draining() -> bool:
    try:
        draining = ray._private.state.state.get_draining_nodes() or {}
        return ray.get_runtime_context().get_node_id() in draining
    except Exception as error:  # the head restarts, or its answer is late: Ray ends the workers where it matters
        logger.debug("cannot ask whether this node drains: %s", error)
        return False


class Agreement:
    """Brings the reasons of all ranks together. Every rank calls :meth:`at_step` after the same steps."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._is_first = dist.get_rank() == 0
        # a group of its own: gloo on the host beside NCCL, and beside DDP's order of collectives
        self._group: Any = dist.new_group(backend="gloo") if dist.get_world_size() > 1 else None
        self._word = torch.zeros(6, dtype=torch.int64)
        self._work: dist.Work | None = None
        self._due = 0
        self._asked: tuple[int, float] | None = None  # step and time

    def at_step(self, step: int) -> Agreed:
        """What all ranks agreed on, asked some steps ago; ``step`` counts from the run's beginning and only grows."""
        if step < self._due:
            return NOTHING
        agreed, apart = NOTHING, 1
        if self._work is not None:
            self._work.wait()
        if self._asked is not None:
            *flags, apart = self._word.tolist()
            agreed = Agreed(*map(bool, flags))
        mine = self._watch.take()
        flags_of_mine = (mine.saves, mine.stops, mine.hands_over, mine.is_lost, mine.not_finite)
        self._word = torch.tensor([*map(int, flags_of_mine), self._steps_apart(step)])
        self._asked = step, time.monotonic()
        if self._group is not None:
            self._work = dist.all_reduce(self._word, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        self._due = step + max(1, apart)
        return agreed

    def close(self) -> None:
        """Wait for what is under way; every rank must call it."""
        if self._work is not None:
            self._work.wait()
        self._watch.close()

    def _steps_apart(self, step: int) -> int:
        """Rank 0's proposal; the others propose nothing."""
        if not self._is_first or self._asked is None:
            return 0
        before, at = self._asked
        seconds = (time.monotonic() - at) / max(1, step - before)
        return min(_MOST_STEPS, max(1, int(_APART_S / max(1e-6, seconds))))
