"""Detect non-finite losses, record the offending batch, and stop or roll back the run."""

from __future__ import annotations

import json
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from stoker.dataset import SampleReader
from stoker.dataset.order import EpochOrder
from stoker.errors import RunError
from stoker.recipe import Recipe
from stoker.runs.folder import RunFolder
from stoker.storage import locate
from stoker.training.fault_tolerance.failure_policy import RestartRequested

__all__ = ["NonFiniteDetector", "handle_non_finite"]

_NEVER = torch.iinfo(torch.int64).max


class NonFiniteDetector:
    """Keeps, on the device, the first step whose loss was NaN or infinite; only :meth:`first_bad_step` reads it."""

    def __init__(self, device: torch.device) -> None:
        self._first = torch.tensor(_NEVER, device=device)

    def note(self, loss: Tensor, step: int) -> None:
        """Call after ``step``; ``loss`` is a 0-dimensional sum on the device that includes this step's loss."""
        self._first = torch.where(torch.isfinite(loss), self._first, self._first.clamp(max=step))

    def first_bad_step(self) -> int | None:
        """The first step over all ranks, or None while every loss was finite. All ranks must call it."""
        first = self._first.clone()
        dist.all_reduce(first, op=dist.ReduceOp.MIN)
        found = int(first.item())
        return None if found == _NEVER else found


def handle_non_finite(
    recipe: Recipe,
    run: RunFolder,
    order: EpochOrder,
    step: int,
    skipped: tuple[int, ...],
    *,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Record the batch of ``step`` (from 0 over the run), whose loss was not finite, and raise. All ranks call it.

    ``order`` is that of the step's epoch, ``skipped`` the steps that are skipped already. Rank 0 writes the samples
    of the batch to ``<run>/not_finite.json`` and, where the recipe skips, the step to ``<run>/skipped.json``, after
    ``check``, which raises if a newer attempt has begun.

    Raises:
        RunError: the recipe says stop, or skipped ``nan_skips`` steps already.
        RestartRequested: the step will be skipped; the ranks restart from the last checkpoint.
    """
    newest = run.latest_checkpoint()
    back = f"step {newest.step}" if newest else "the start"
    skips = recipe.on_nan == "skip" and len(skipped) < recipe.nan_skips and step not in skipped
    epoch, within = divmod(step, order.steps)
    keys: list[str] = []
    if dist.get_rank() == 0:
        numbers = [n for n in order.samples_at(within, range(recipe.batch.total)).tolist() if n >= 0]
        reader = SampleReader(locate(recipe.data.url, timeout_s=recipe.storage_timeout_s), recipe.data.train_split)
        keys = reader.keys(numbers)
        check()
        report = {"step": step, "epoch": epoch, "step_of_epoch": within, "samples": numbers, "keys": keys}
        (run.location / "not_finite.json").write(json.dumps(report, indent=1).encode())
        if skips:
            run.write_skipped_steps((*skipped, step))
    dist.barrier()  # no rank exits before rank 0 has written
    if skips:
        raise RestartRequested(
            f"the loss at step {step} was not finite; rolling back to {back}, its batch will be skipped "
            f"({len(skipped) + 1} of at most {recipe.nan_skips})"
        )
    shown = f" (keys {', '.join(keys[:3])}, …)" if keys else ""
    often = f"; {len(skipped)} steps were skipped before (nan_skips)" if recipe.on_nan == "skip" else ""
    raise RunError(
        f"run {run.name!r}: the loss turned NaN or infinite at step {step} (epoch {epoch + 1}, step {within + 1} of it)"
        f"{shown}{often}; the last good checkpoint is of {back}, the batch's samples are in "
        f"{run.location}/not_finite.json; lower optimizer.lr, clip gradients, or set on_nan: skip"
    )
