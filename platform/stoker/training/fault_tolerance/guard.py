"""Wraps one rank's step loop with everything that is not training: stalls, signals, bad losses, out of memory."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from stoker.dataset.order import EpochOrder
from stoker.errors import RunError
from stoker.recipe import Recipe
from stoker.runs.fence import Fence
from stoker.runs.folder import RunFolder
from stoker.training.broadcast import from_rank_zero
from stoker.training.fault_tolerance.agreement import NOTHING, Agreement, Decision, RequestWatcher
from stoker.training.fault_tolerance.circumstances import annotate
from stoker.training.fault_tolerance.failure_policy import RestartRequested
from stoker.training.fault_tolerance.lease import read_holder
from stoker.training.fault_tolerance.non_finite import NonFiniteDetector, handle_non_finite
from stoker.training.fault_tolerance.watchdog import Watchdog
from stoker.training.step.compilation import watched_compilation

__all__ = ["Guard", "StopTraining", "memory_of_others", "smaller_micro_batch"]

Part = TypeVar("Part")

_MEMORY_OF_OTHERS = 2**31
"""bytes of a GPU: with less used by others, this process is out of memory by itself. What CUDA, NCCL and cuDNN hold for
themselves is not in torch's account"""


class StopTraining(Exception):
    """Leaves the step loop. ``then`` is raised once the checkpoint is committed; None exits as if the run were done."""

    def __init__(self, then: Exception | None) -> None:
        super().__init__("all ranks stop after this step")
        self.then = then


class Guard:
    """Context manager around the step loop; ``lease`` is the token of the driver's lease, "" for none.

    ``order`` is this attempt's place among those of the driver (``runs.fence``).
    """

    def __init__(
        self, recipe: Recipe, run: RunFolder, lease: str, device: torch.device, *, order: tuple[int, int] = (0, 0)
    ) -> None:
        self._recipe, self._run, self._token, self._device = recipe, run, lease, device
        rank = dist.get_rank()
        self._watchdog = Watchdog(rank, recipe.workers.stall_timeout_s)
        minutes = recipe.checkpoint.every_minutes
        self._watcher = RequestWatcher(
            rank,
            lease=run.lease,
            token=lease,
            save_every_s=60 * minutes if minutes else None,
            watches_node=_local_rank() == 0,
        )
        self._agreement = Agreement(self._watcher)
        self._losses = NonFiniteDetector(device)
        self._step = 0
        self._open = ExitStack()
        self.fence = Fence(run.attempt, run.checkpoints, lease=lease, order=order, check_lease=self._check_lease)
        """who may change the run's files; rank 0 claims it when it restores"""
        self.skipped = self._skipped_steps(device) if recipe.on_nan == "skip" else ()
        """steps of the run that are skipped, ascending"""

    def __enter__(self) -> Guard:
        if self._recipe.compile:
            watched = watched_compilation(self._watchdog.compile_begins, self._watchdog.compile_ends)
            self._open.enter_context(watched)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> bool:
        self._open.close()
        self._watchdog.close()
        if isinstance(error, StopTraining):
            self._watcher.close()
            if error.then is not None:
                raise error.then from None
            return True
        if error is None:
            self._agreement.close()
            return False
        self._watcher.close()
        annotate(error, self._step)
        if isinstance(error, torch.OutOfMemoryError) and memory_of_others(self._device) < _MEMORY_OF_OTHERS:
            raise _out_of_memory(self._recipe, self._step) from error
        return False

    def heartbeat(self) -> None:
        """Report progress to the watchdog; call it in long work between steps."""
        self._watchdog.heartbeat()

    def with_heartbeats(self, parts: Iterable[Part]) -> Iterator[Part]:
        """Yield ``parts`` of long work, with a heartbeat before each."""
        for part in parts:
            self.heartbeat()
            yield part

    # -- around a step -----------------------------------------------------------------------------------------------

    def skips(self, step: int) -> bool:
        """Whether ``step`` (from 0 over the run) is skipped: its loss was not finite in an earlier attempt."""
        self._step = step
        return step in self.skipped

    def note_loss(self, loss: Tensor, step: int) -> None:
        """Call after ``step``; ``loss`` is a sum on the device that includes this step's. Does not wait for it."""
        self._losses.note(loss, step)

    def check_loss(self, loss: float) -> None:
        """Check a loss that the loop has read anyway: if it is not finite, all ranks soon look for its step."""
        if not math.isfinite(loss):
            self._watcher.report_non_finite()

    def after_step(self, step: int) -> Decision:
        """What all ranks agreed on, after ``step`` steps of the run. A checkpoint is due if ``saves`` is set.

        Raises:
            RunError: another driver holds the run's lease.
        """
        self.heartbeat()
        decision = self._agreement.at_step(step)
        if decision.lease_is_lost:
            raise RunError(f"run {self._run.name!r} was taken over by another driver; this one's workers exit")
        if decision.stops or decision.restarts or decision.loss_is_not_finite:
            return Decision(True, decision.stops, decision.restarts)
        return decision

    def act_on(self, decision: Decision) -> None:
        """Call after the checkpoint that ``decision`` asked for.

        Raises:
            StopTraining: the ranks stop, all after the same step.
        """
        if decision is NOTHING:
            return
        if decision.stops:
            raise StopTraining(None)
        if decision.restarts:
            raise StopTraining(
                RestartRequested("its ranks stopped to be restarted (SIGTERM, a drained node, or a resize)")
            )

    # -- around a checkpoint -----------------------------------------------------------------------------------------

    def require_finite(self, order: Callable[[int], EpochOrder]) -> None:
        """Call before a checkpoint, on all ranks: every loss so far must have been finite.

        Raises:
            RunError, RestartRequested: one was not; see :func:`.non_finite.handle_non_finite`.
        """
        if (bad := self._losses.first_bad_step()) is not None:
            epoch = order(bad // order(0).steps)
            handle_non_finite(self._recipe, self._run, epoch, bad, self.skipped, check=self.fence.check)

    def _skipped_steps(self, device: torch.device) -> tuple[int, ...]:
        """The steps as rank 0 reads them: all ranks must skip the same ones."""
        return tuple(from_rank_zero(lambda: list(self._run.skipped_steps()), device))

    def _check_lease(self) -> None:
        """Raise RunError if the run's lease is another driver's."""
        if not self._token:
            return
        holder = read_holder(self._run.lease)
        if holder is not None and holder.token != self._token:
            raise RunError(
                f"run {self._run.name!r} was taken over by a driver on {holder.host} (process {holder.pid}); "
                "this one's checkpoint is discarded"
            )


def smaller_micro_batch(total: int, micro: int) -> int | None:
    """The largest divisor of ``total`` that is at most half of ``micro``; None if there is none."""
    return next((size for size in range(micro // 2, 0, -1) if total % size == 0), None)


def memory_of_others(device: torch.device) -> int:
    """Bytes of the memory of ``device`` that torch in this process does not hold; 0 on a CPU, or if unknown."""
    if device.type != "cuda":
        return 0
    try:
        free, total = torch.cuda.mem_get_info(device)
        return total - free - torch.cuda.memory_reserved(device)
    except RuntimeError:
        return 0


def _out_of_memory(recipe: Recipe, step: int) -> RunError:
    batch, size = recipe.batch, recipe.data.image_size
    smaller = smaller_micro_batch(batch.total, batch.micro)
    advice = (
        f"start the run under another name with batch.micro={smaller}" if smaller else "choose a smaller model or image"
    )
    return RunError(
        f"out of GPU memory with batch.micro {batch.micro} at {size} pixels "
        f"({recipe.model.name}, step {step}); {advice}"
    )


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))
