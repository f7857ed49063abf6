"""Progress lines in the job's log, which a terminal turns into a bar (``progress_bar``)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field

from stoker.recipe import Recipe
from stoker.runs.records import EpochRecord

__all__ = ["Progress", "ProgressSnapshot", "duration"]


@dataclass(frozen=True)
class ProgressSnapshot:
    """The progress of a run: ``step`` of the whole run, ``epoch`` from 0; loss and accuracy of the epoch so far.

    ``images_per_s`` and ``data_wait`` (a fraction of the wall time, 0 to 1) cover the time since the last report;
    ``left_s`` is the estimated time to the end of the run; ``more`` are further figures by name.
    """

    step: int
    epoch: int
    loss: float
    accuracy: float
    learning_rate: float
    images_per_s: float
    data_wait: float
    left_s: float
    more: Mapping[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, float]:
        """Return all numbers by name, those of ``more`` included."""
        values = asdict(self)
        return values | values.pop("more")


class Progress:
    """Print at most one line every ``recipe.log_every_s`` seconds, and those of each epoch, through ``print_line``."""

    def __init__(
        self, recipe: Recipe, steps_per_epoch: int, *, first_step: int, print_line: Callable[[str], None] | None
    ) -> None:
        self._name, self._epochs, self._steps_per_epoch = recipe.name, recipe.schedule.epochs, steps_per_epoch
        self._global_batch, self._every_s = recipe.batch.total, recipe.log_every_s
        self._print_line = print_line or (lambda _: None)
        self._first_step = self._last_step = first_step
        self._began = self._last = time.monotonic()
        self._waited = 0.0

    @property
    def is_due(self) -> bool:
        """Whether a report interval has passed; asking does not touch the device."""
        return time.monotonic() - self._last >= self._every_s

    def skip(self, step: int) -> None:
        """Restart the interval at ``step`` without printing."""
        self._last, self._last_step = time.monotonic(), step

    def step(
        self, step: int, loss: float, accuracy: float, rate: float, *, waited_s: float, more: Mapping[str, float]
    ) -> ProgressSnapshot:
        """Print and return the progress after ``step`` steps of the run.

        ``waited_s`` are the seconds that this attempt has waited for data so far.
        """
        since, steps, waited = time.monotonic() - self._last, step - self._last_step, waited_s - self._waited
        self.skip(step)
        self._waited = waited_s
        epoch, within = divmod(step - 1, self._steps_per_epoch)
        snapshot = ProgressSnapshot(
            step=step,
            epoch=epoch,
            loss=loss,
            accuracy=accuracy,
            learning_rate=rate,
            images_per_s=steps * self._global_batch / max(1e-9, since),
            data_wait=min(1.0, waited / max(1e-9, since)),
            left_s=self._left_s(step),
            more=more,
        )
        self._print_line(
            f"{self._name}: epoch {epoch + 1}/{self._epochs} step {within + 1}/{self._steps_per_epoch} "
            f"loss {loss:.4f} accuracy {accuracy:.1%} rate {rate:.2g} {snapshot.images_per_s:,.0f} images/s "
            f"data wait {snapshot.data_wait:.0%}, {duration(snapshot.left_s)} left"
        )
        return snapshot

    def epoch(self, record: EpochRecord) -> None:
        """Print the record of an epoch that has ended, what its time went into, and the advice."""
        validation = ""
        if record.validation:
            v = record.validation
            macro = "" if v.macro_accuracy is None else f" macro accuracy {v.macro_accuracy:.2%}"
            validation = f" | validation loss {v.loss:.4f} accuracy {v.accuracy:.2%}{macro} of {v.samples}"
        self._print_line(
            f"{self._name}: epoch {record.epoch + 1}/{self._epochs} done: loss {record.train_loss:.4f} "
            f"accuracy {record.train_accuracy:.1%} rate {record.learning_rate:.2g} {record.images_per_s:,.0f} images/s "
            f"data wait {record.data_wait:.0%}{validation}{_retried(record.reads)}, "
            f"{duration(self._left_s(record.step))} left"
        )
        if record.goodput:
            spent = ", ".join(f"{kind.replace('_', ' ')} {f:.1%}" for kind, f in record.goodput.fractions.items())
            took = duration(record.goodput.wall_s)
            self._print_line(f"{self._name}: epoch {record.epoch + 1}/{self._epochs} took {took}: {spent}")
            self._print_line(f"{self._name}: {record.goodput.advice}")

    def _left_s(self, step: int) -> float:
        done = step - self._first_step
        total = self._epochs * self._steps_per_epoch - self._first_step
        return (time.monotonic() - self._began) * (total - done) / max(1, done)


_FAILURES = ("bad_bodies", "deadlines", "slow_downs", "server_errors", "resets", "refusals", "other_failures")


def _retried(reads: dict[str, float]) -> str:
    """The failed reads since the start by cause, each of which was retried; empty if there are none."""
    failed = {name: int(reads.get(f"read_{name}", 0)) for name in _FAILURES}
    causes = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in failed.items() if count)
    return f" | retried reads: {causes}" if causes else ""


def duration(seconds: float) -> str:
    """Format seconds: ``95`` as ``1:35``, ``4000`` as ``1:06:40``."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
