"""Everything that a run tells while it works, in one object that the worker holds: clock, log, files, metrics, report.

Values leave the device at report intervals and at the end of an epoch, nowhere else. All files are written beside the
step loop (``stoker.training.telemetry.outbox``), so a store that is away never holds it up.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
import torch.distributed as dist

from stoker.dataset import Loader
from stoker.errors import StorageError
from stoker.evaluation import EvaluationResult
from stoker.recipe import Recipe
from stoker.runs.folder import RunFolder
from stoker.runs.records import KINDS, EpochRecord, Goodput, History
from stoker.training.telemetry.advice import advice
from stoker.training.telemetry.events import Events, read_events
from stoker.training.telemetry.goodput import Clock, merged
from stoker.training.telemetry.outbox import Outbox
from stoker.training.telemetry.progress import Progress, ProgressSnapshot
from stoker.training.telemetry.prometheus import RunMetrics
from stoker.training.telemetry.trackers import Tracking

__all__ = ["Recorder", "say"]

logger = logging.getLogger(__name__)


class Recorder:
    """One rank's account of a run; rank 0 tells it. ``history`` are the records of the epochs that have ended."""

    def __init__(self, recipe: Recipe, run: RunFolder, loader: Loader, device: torch.device) -> None:
        self._recipe, self._run, self._loader, self._device = recipe, run, loader, device
        self._rank, self._world_size = dist.get_rank(), dist.get_world_size()
        self.clock = Clock()
        self.history: list[EpochRecord] = []
        self._restarted_from: float | None = None
        self._repeated_s = 0.0
        self._reads = loader.metrics()
        self._metrics = RunMetrics(recipe.name, self._rank)
        self._is_first = self._rank == 0
        if self._is_first:
            self._outbox = Outbox()
            self._tracking = Tracking(recipe, run.location, self._outbox)
            self.events = Events(run.location / "events", self._outbox)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of this: JSON."""
        return {
            "clock": self.clock.so_far(),
            "repeated_s": self._repeated_s,
            "at": time.time(),
            "history": [record.model_dump(mode="json") for record in self.history],
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` told."""
        self.clock.carry(state["clock"])
        self._repeated_s = float(state["repeated_s"])
        self._restarted_from = float(state["at"])
        self.history = [EpochRecord.model_validate(record) for record in state["history"]]

    def begin(self, step: int, why: Mapping[str, Any] = MappingProxyType({})) -> None:
        """This attempt goes on from ``step`` (of the whole run); ``why`` tells of the failure that came before."""
        recipe = self._recipe
        self._progress = Progress(recipe, self._loader.steps, first_step=step, say=say if self._is_first else None)
        if self._is_first:
            self._look_back()
            self.events.prune()
            self.events.add("attempt", step=step, world_size=self._world_size, **why)
        found = torch.tensor([self._restarted_from or 0.0, self._repeated_s], dtype=torch.float64, device=self._device)
        dist.broadcast(found, src=0)
        restarted_from, self._repeated_s = found.tolist()
        self._restarted_from = restarted_from or None
        if self._restarted_from is None:
            self.clock.lap()  # what came before the first epoch belongs to none

    def _look_back(self) -> None:
        """From the events of the attempts before: since when all is done again, and how long that took before."""
        try:
            before = [float(event["at"]) for event in read_events(self._run.location / "events", newest=8)]
        except (StorageError, KeyError, ValueError) as error:  # what is told of a run must not keep it from going on
            logger.warning("the time lost between attempts is not known: %s", error)
            return
        if before and self._restarted_from is None:  # no checkpoint yet: all that was done is done again
            self._restarted_from = min(before)
        if before and self._restarted_from is not None:
            self._repeated_s += max(0.0, max(before) - self._restarted_from)

    def stepped(
        self,
        step: int,
        rate: float,
        totals: Callable[[], Sequence[float]],
        more: Mapping[str, float] | None = None,
    ) -> ProgressSnapshot | None:
        """After ``step`` steps of the run: if a line is due, say it, and return what it said.

        Only then ``totals`` is called, which reads loss, correct predictions and samples of this rank from the device.
        ``more`` are further figures by name, for the run's files and metrics.
        """
        if self._restarted_from is not None:
            self.clock.restarted(time.time() - self._restarted_from)
            self._restarted_from = None
        if not self._progress.is_due:
            return None
        self._metrics.reads(self._loader.metrics())
        if not self._is_first:
            self._progress.skip(step)
            return None
        loss, correct, count = totals()
        waited_s = self.clock.ever["data_wait"]
        standing = self._progress.step(step, loss / count, correct / count, rate, waited_s=waited_s, more=more or {})
        self._metrics.standing(standing)
        self._tracking.standing(standing)
        self.events.add("progress", **standing.as_dict())
        return standing

    def close_epoch(
        self, epoch: int, step: int, rate: float, totals: Sequence[float], evaluated: EvaluationResult | None
    ) -> EpochRecord:
        """Make, keep and tell the record of ``epoch``; all ranks must call it, with the ``totals`` of all of them."""
        loss, correct, count = totals
        goodput = self._goodput()
        seconds = goodput.wall_s * (1 - goodput.shares["evaluation"] - goodput.shares["restart"])
        record = EpochRecord(
            epoch=epoch,
            step=step,
            seconds=seconds,
            images_per_s=count / max(1e-9, seconds),
            data_wait=goodput.shares["data_wait"] * goodput.wall_s / max(1e-9, seconds),
            learning_rate=rate,
            train_loss=loss / max(1.0, count),
            train_accuracy=correct / max(1.0, count),
            world_size=self._world_size,
            validation=evaluated.metrics if evaluated else None,
            reads=self._reads,
            goodput=goodput,
        )
        self.history.append(record)
        self._repeated_s = 0.0
        self._metrics.reads(self._reads)
        if self._is_first:
            self._progress.epoch(record)
            self._metrics.epoch(record)
            self._tracking.epoch(record)
            self.events.add("epoch", **record.model_dump(mode="json", exclude={"reads"}))
            history = History(epochs=tuple(self.history)).model_dump_json(indent=1)
            self._outbox.put(self._run.location / "history.json", history.encode())
        return record

    def close(self) -> None:
        """Write what waits; the run has ended, or this attempt at it."""
        if self._is_first:
            self._tracking.close()
            self._outbox.close()

    def _goodput(self) -> Goodput:
        """Of the epoch that ends now, over all ranks, with advice from the reads of the rank that it is about."""
        metrics, before = self._loader.metrics(), self._reads
        grown = {name: value - before.get(name, 0.0) for name, value in metrics.items()}
        names, lap = sorted(grown), self.clock.lap()
        own = torch.tensor([*(lap[kind] for kind in KINDS), *(grown[name] for name in names)], dtype=torch.float64)
        rows = [torch.empty_like(own, device=self._device) for _ in range(self._world_size)]
        dist.all_gather(rows, own.to(self._device))
        ranks = [row.tolist() for row in rows]
        goodput = merged(
            [dict(zip(KINDS, row[: len(KINDS)], strict=True)) for row in ranks], repeated_s=self._repeated_s
        )
        told = dict(zip(names, ranks[goodput.rank][len(KINDS) :], strict=True))
        self._reads = metrics
        return goodput.model_copy(update={"advice": advice(goodput, told, self._recipe)})


def say(line: str) -> None:
    """Into the job's log, once: Ray Train would copy what ``print`` prints into its own log as well."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
