"""A loss that is no number any more: at which step, with which samples, and what becomes of the run."""

from __future__ import annotations

import json

import torch
import torch.distributed as dist
from torch import Tensor

from stoker.dataset import SampleReader
from stoker.dataset.order import EpochOrder
from stoker.errors import RunError
from stoker.recipe import Recipe
from stoker.runs.folder import RunFolder
from stoker.storage import locate
from stoker.training.fault_tolerance.failure_policy import HandedOver

__all__ = ["FiniteLoss", "not_finite"]

_NEVER = torch.iinfo(torch.int64).max


class FiniteLoss:
    """Remembers, on the device, the first step whose loss was no number; asking is the only time that it is read."""

    def __init__(self, device: torch.device) -> None:
        self._first = torch.tensor(_NEVER, device=device)

    def note(self, loss: Tensor, step: int) -> None:
        """After ``step``: ``loss`` is a 0-dimensional sum on the device that holds this step's loss."""
        self._first = torch.where(torch.isfinite(loss), self._first, self._first.clamp(max=step))

    def first_bad_step(self) -> int | None:
        """Over all ranks, which must all ask; None while every loss was a number."""
        first = self._first.clone()
        dist.all_reduce(first, op=dist.ReduceOp.MIN)
        found = int(first.item())
        return None if found == _NEVER else found


def not_finite(recipe: Recipe, run: RunFolder, order: EpochOrder, step: int, skipped: tuple[int, ...]) -> None:
    """What happens after the loss at ``step`` (from 0 over the run) was no number; all ranks call it, none returns.

    ``order`` is that of the step's epoch, ``skipped`` the steps that are left out already. Rank 0 writes the samples
    of the batch to ``<run>/not_finite.json`` and, where the recipe skips, the step to ``<run>/skipped.json``.

    Raises:
        RunError: the recipe says stop, or skipped ``nan_skips`` steps already.
        HandedOver: the step will be left out; the ranks are to start again from the last checkpoint.
    """
    newest = run.latest_checkpoint()
    back = f"step {newest.step}" if newest else "the beginning"
    skips = recipe.on_nan == "skip" and len(skipped) < recipe.nan_skips and step not in skipped
    epoch, within = divmod(step, order.steps)
    keys: list[str] = []
    if dist.get_rank() == 0:
        numbers = [n for n in order.samples_at(within, range(recipe.batch.total)).tolist() if n >= 0]
        reader = SampleReader(locate(recipe.data.url, timeout_s=recipe.storage_timeout_s), recipe.data.train_split)
        keys = [sample.key for sample in reader.read(numbers)]
        told = {"step": step, "epoch": epoch, "step_of_epoch": within, "samples": numbers, "keys": keys}
        (run.location / "not_finite.json").write(json.dumps(told, indent=1).encode())
        if skips:
            run.write_skipped_steps((*skipped, step))
    dist.barrier()  # nobody's end comes before rank 0 has written
    if skips:
        raise HandedOver(
            f"the loss at step {step} was no number; going back to {back}, its batch will be left out "
            f"({len(skipped) + 1} of at most {recipe.nan_skips})"
        )
    shown = f" (keys {', '.join(keys[:3])}, …)" if keys else ""
    often = f"; {len(skipped)} steps were skipped before (nan_skips)" if recipe.on_nan == "skip" else ""
    raise RunError(
        f"run {run.name!r}: the loss turned NaN or infinite at step {step} (epoch {epoch + 1}, step {within + 1} of it)"
        f"{shown}{often}; the last good checkpoint is that of {back}, the batch's samples are in "
        f"{run.location}/not_finite.json; lower optimizer.lr, clip gradients, or set on_nan: skip"
    )
