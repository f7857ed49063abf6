"""Record a run's progress, goodput, events and metrics: the one object through which the worker reports.

Values leave the device at report intervals and at the end of an epoch, nowhere else. All files are written in the
background (``stoker.training.telemetry.outbox``), so an unavailable store never blocks the step loop.
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
from stoker.runs.records import KINDS, EpochRecord, Goodput, History, Record
from stoker.training.step.determinism import nondeterministic_operations
from stoker.training.telemetry.advice import advice
from stoker.training.telemetry.events import Events, read_events
from stoker.training.telemetry.goodput import Clock, merge_ranks
from stoker.training.telemetry.outbox import Outbox
from stoker.training.telemetry.progress import Progress, ProgressSnapshot
from stoker.training.telemetry.prometheus import RunMetrics
from stoker.training.telemetry.trackers import Trackers

__all__ = ["Recorder", "RecorderState", "print_line"]

logger = logging.getLogger(__name__)


class RecorderState(Record):
    """What a checkpoint stores of a :class:`Recorder`."""

    clock: dict[str, float]
    """seconds of the current epoch so far, by kind of goodput"""
    repeated_s: float
    """of the restarts in the current epoch: seconds spent on repeated steps"""
    at: float
    """when it was stored, seconds since 1970"""
    history: tuple[EpochRecord, ...]
    """of the epochs that have ended"""
    nondeterministic_operations: tuple[str, ...] = ()
    """that have run so far, in any attempt"""


class Recorder:
    """Measures on every rank and reports from rank 0. ``history`` are the records of the epochs that have ended."""

    def __init__(self, recipe: Recipe, run: RunFolder, loader: Loader, device: torch.device) -> None:
        self._recipe, self._run, self._loader, self._device = recipe, run, loader, device
        self._rank, self._world_size = dist.get_rank(), dist.get_world_size()
        self.clock = Clock()
        self.history: list[EpochRecord] = []
        self._nondeterministic: tuple[str, ...] = ()
        self._restarted_from: float | None = None
        self._repeated_s = 0.0
        self._reads = loader.metrics()
        self._metrics = RunMetrics(recipe.name, self._rank)
        self._is_first = self._rank == 0
        if self._is_first:
            self._outbox = Outbox()
            self._trackers = Trackers(recipe, run.location, self._outbox)
            self.events = Events(run.location / "events", self._outbox)

    def state(self) -> RecorderState:
        """Return what a checkpoint stores of this object."""
        return RecorderState(
            clock=self.clock.seconds(),
            repeated_s=self._repeated_s,
            at=time.time(),
            history=tuple(self.history),
            nondeterministic_operations=self.nondeterministic_operations,
        )

    def load_state(self, state: RecorderState) -> None:
        """Restore what :meth:`state` returned."""
        self.clock.restore(state.clock)
        self._repeated_s, self._restarted_from = state.repeated_s, state.at
        self.history = list(state.history)
        self._nondeterministic = state.nondeterministic_operations

    @property
    def nondeterministic_operations(self) -> tuple[str, ...]:
        """Operations without a deterministic algorithm that have run in this attempt or before it, sorted."""
        return tuple(sorted({*self._nondeterministic, *nondeterministic_operations()}))

    def begin(self, step: int, why: Mapping[str, Any] = MappingProxyType({})) -> None:
        """Start an attempt at ``step`` of the whole run; ``why`` describes the failure that came before.

        All ranks must call it.
        """
        recipe = self._recipe
        lines = print_line if self._is_first else None
        self._progress = Progress(recipe, self._loader.steps, first_step=step, print_line=lines)
        if self._is_first:
            self._read_earlier_attempts()
            self.events.prune()
            self.events.add("attempt", step=step, world_size=self._world_size, **why)
        shared = torch.tensor([self._restarted_from or 0.0, self._repeated_s], dtype=torch.float64, device=self._device)
        dist.broadcast(shared, src=0)
        restarted_from, self._repeated_s = shared.tolist()
        self._restarted_from = restarted_from or None
        if self._restarted_from is None:
            self.clock.lap()  # startup before the first epoch belongs to no epoch

    def _read_earlier_attempts(self) -> None:
        """Find, from the events of earlier attempts, since when work is repeated and how long it took before."""
        try:
            before = [float(event["at"]) for event in read_events(self._run.location / "events", newest=8)]
        except (StorageError, KeyError, ValueError) as error:  # reporting must not keep a run from resuming
            logger.warning("cannot read the events of earlier attempts; goodput may lack restart time: %s", error)
            return
        if before and self._restarted_from is None:  # no checkpoint yet: everything is repeated
            self._restarted_from = min(before)
        if before and self._restarted_from is not None:
            self._repeated_s += max(0.0, max(before) - self._restarted_from)

    def record_step(
        self,
        step: int,
        rate: float,
        totals: Callable[[], Sequence[float]],
        more: Mapping[str, float] | None = None,
    ) -> ProgressSnapshot | None:
        """After ``step`` steps of the run: report progress if an interval has passed, and return what was reported.

        Only then is ``totals`` called, which reads loss, correct predictions and samples of this rank from the device.
        ``more`` are further figures by name, for the run's files and metrics.
        """
        if self._restarted_from is not None:
            self.clock.mark_restart(time.time() - self._restarted_from)
            self._restarted_from = None
        if not self._progress.is_due:
            return None
        self._metrics.reads(self._loader.metrics())
        if not self._is_first:
            self._progress.skip(step)
            return None
        loss, correct, count = totals()
        if not count:  # the epoch's steps so far were skipped
            return None
        waited_s = self.clock.total_s["data_wait"]
        snapshot = self._progress.step(step, loss / count, correct / count, rate, waited_s=waited_s, more=more or {})
        self._metrics.snapshot(snapshot)
        self._trackers.snapshot(snapshot)
        self.events.add("progress", **snapshot.as_dict())
        return snapshot

    def record_epoch(
        self, epoch: int, step: int, rate: float, totals: Sequence[float], evaluated: EvaluationResult | None
    ) -> EpochRecord:
        """Build, keep and report the record of ``epoch``; all ranks must call it, with ``totals`` summed over ranks."""
        loss, correct, count = totals
        goodput = self._goodput()
        seconds = goodput.wall_s * (1 - goodput.fractions["evaluation"] - goodput.fractions["restart"])
        record = EpochRecord(
            epoch=epoch,
            step=step,
            seconds=seconds,
            images_per_s=count / max(1e-9, seconds),
            data_wait=goodput.fractions["data_wait"] * goodput.wall_s / max(1e-9, seconds),
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
            self._trackers.epoch(record)
            self.events.add("epoch", **record.model_dump(mode="json", exclude={"reads"}))
            history = History(epochs=tuple(self.history)).model_dump_json(indent=1)
            self._outbox.put(self._run.location / "history.json", history.encode())
        return record

    def close(self) -> None:
        """Flush all reports at the end of this attempt; waits for a bounded time."""
        if self._is_first:
            self._trackers.close()
            self._outbox.close()

    def _goodput(self) -> Goodput:
        """Goodput of the epoch that ends now, over all ranks, with advice from its critical rank's loader metrics."""
        metrics, before = self._loader.metrics(), self._reads
        grown = {name: value - before.get(name, 0.0) for name, value in metrics.items()}
        names, lap = sorted(grown), self.clock.lap()
        own = torch.tensor([*(lap[kind] for kind in KINDS), *(grown[name] for name in names)], dtype=torch.float64)
        rows = [torch.empty_like(own, device=self._device) for _ in range(self._world_size)]
        dist.all_gather(rows, own.to(self._device))
        ranks = [row.tolist() for row in rows]
        goodput = merge_ranks(
            [dict(zip(KINDS, row[: len(KINDS)], strict=True)) for row in ranks], repeated_s=self._repeated_s
        )
        reads = dict(zip(names, ranks[goodput.rank][len(KINDS) :], strict=True))
        self._reads = metrics
        return goodput.model_copy(update={"advice": advice(goodput, reads, self._recipe)})


def print_line(line: str) -> None:
    """Print to the job's log once; Ray Train copies what ``print`` prints into its own log as well."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
