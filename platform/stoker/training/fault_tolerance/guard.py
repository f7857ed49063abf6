"""Stands beside one rank's loop for everything that is not training: hangs, signals, bad losses, too little memory."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType

import torch
import torch.distributed as dist
from torch import Tensor

from stoker.dataset import Batch
from stoker.dataset.order import EpochOrder
from stoker.errors import RunError, StokerError
from stoker.recipe import Recipe
from stoker.runs.folder import RunFolder
from stoker.training.fault_tolerance.agreement import NOTHING, Agreed, Agreement, Watch
from stoker.training.fault_tolerance.failure_policy import HandedOver, note_step
from stoker.training.fault_tolerance.lease import read_holder
from stoker.training.fault_tolerance.non_finite import FiniteLoss, not_finite
from stoker.training.fault_tolerance.watchdog import Watchdog

__all__ = ["Ended", "Guard", "smaller_micro_batch"]


class Ended(Exception):
    """Leave the loop. ``then`` is raised after the checkpoint is committed; None ends the rank as if it were done."""

    def __init__(self, then: Exception | None) -> None:
        super().__init__("all ranks end after this step")
        self.then = then


class Guard:
    """Used around the loop as a context manager; ``lease`` is the token of the driver's lease, "" for none."""

    def __init__(self, recipe: Recipe, run: RunFolder, lease: str, device: torch.device) -> None:
        self._recipe, self._run, self._token = recipe, run, lease
        rank = dist.get_rank()
        self._dog = Watchdog(rank, recipe.workers.stall_timeout_s)
        minutes = recipe.checkpoint.every_minutes
        self._watch = Watch(
            rank,
            lease=run.lease,
            token=lease,
            save_every_s=60 * minutes if minutes else None,
            watches_node=_local_rank() == 0,
        )
        self._agreement = Agreement(self._watch)
        self._finite = FiniteLoss(device)
        self._step = 0
        self.skipped = run.skipped_steps() if recipe.on_nan == "skip" else ()
        """steps of the run that are left out, ascending"""

    def __enter__(self) -> Guard:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> bool:
        self._dog.close()
        if isinstance(error, Ended):
            self._watch.close()
            if error.then is not None:
                raise error.then from None
            return True
        if error is None:
            self._agreement.close()
            return False
        self._watch.close()
        if isinstance(error, torch.OutOfMemoryError):
            raise _out_of_memory(self._recipe, self._step) from error
        if not isinstance(error, (StokerError, HandedOver)):
            note_step(error, self._step)
        return False

    def beat(self) -> None:
        """The rank goes on; call it in long work that is no step."""
        self._dog.beat()

    def beating(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """``batches``, each of which says that the rank goes on."""
        for batch in batches:
            self.beat()
            yield batch

    # -- around a step -----------------------------------------------------------------------------------------------

    def skips(self, step: int) -> bool:
        """Whether ``step`` (from 0 over the run) is left out because its loss was no number in an earlier attempt."""
        self._step = step
        return step in self.skipped

    def note_loss(self, loss: Tensor, step: int) -> None:
        """After ``step``; ``loss`` is a sum on the device that holds this step's. Nothing is read from the device."""
        self._finite.note(loss, step)

    def see_loss(self, loss: float) -> None:
        """A loss that the loop read anyway: if it is no number, all ranks look for its step soon."""
        if not math.isfinite(loss):
            self._watch.found_not_finite()

    def after_step(self, step: int) -> Agreed:
        """What all ranks agreed on, after ``step`` steps of the run. A checkpoint is due if ``saves`` is set."""
        self._dog.beat()
        agreed = self._agreement.at_step(step)
        if agreed.is_lost:
            raise RunError(f"run {self._run.name!r} was taken over by another driver; this one's workers end")
        if agreed.stops or agreed.hands_over or agreed.not_finite:
            return Agreed(True, agreed.stops, agreed.hands_over)
        return agreed

    def obey(self, agreed: Agreed) -> None:
        """After the checkpoint that ``agreed`` asked for.

        Raises:
            Ended: the ranks are to end, all after the same step.
        """
        if agreed is NOTHING:
            return
        if agreed.stops:
            raise Ended(None)
        if agreed.hands_over:
            raise Ended(
                HandedOver("its ranks handed over in order (SIGTERM, a drained node, or another number of workers)")
            )

    # -- around a checkpoint -----------------------------------------------------------------------------------------

    def must_be_finite(self, order: Callable[[int], EpochOrder]) -> None:
        """Before a checkpoint: every loss so far was a number; all ranks must ask.

        Raises:
            RunError, HandedOver: one was not; see :func:`stoker.training.fault_tolerance.non_finite.not_finite`.
        """
        if (bad := self._finite.first_bad_step()) is not None:
            not_finite(self._recipe, self._run, order(bad // order(0).steps), bad, self.skipped)

    def may_commit(self) -> None:
        """Before a checkpoint's manifest is written, in the writer's thread.

        Raises:
            RunError: the run's lease is another driver's.
        """
        if not self._token:
            return
        holder = read_holder(self._run.lease)
        if holder is not None and holder.token != self._token:
            raise RunError(
                f"run {self._run.name!r} was taken over by a driver on {holder.host} (process {holder.pid}); "
                "this one's checkpoint is dropped"
            )


def smaller_micro_batch(total: int, micro: int) -> int | None:
    """The largest divisor of ``total`` that is at most half of ``micro``; None where one sample is too much already."""
    return next((size for size in range(micro // 2, 0, -1) if total % size == 0), None)


def _out_of_memory(recipe: Recipe, step: int) -> RunError:
    batch, size = recipe.batch, recipe.data.image_size
    smaller = smaller_micro_batch(batch.total, batch.micro)
    advice = (
        f"start the run under another name with batch.micro={smaller}" if smaller else "choose a smaller model or image"
    )
    return RunError(
        f"the GPU's memory is too small for batch.micro {batch.micro} at {size} pixels "
        f"({recipe.model.name}, step {step}); {advice}"
    )


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))
