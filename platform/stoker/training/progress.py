"""What a run says while it works: a line now and then, for a job's log."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from stoker.training.records import EpochRecord

__all__ = ["Progress", "duration"]


@dataclass
class Progress:
    """Prints at most one line every ``every_s`` seconds, and one an epoch."""

    name: str
    epochs: int
    steps_per_epoch: int
    first_step: int
    every_s: float
    say: Callable[[str], None] = field(default=lambda line: print(line, flush=True))  # noqa: T201

    def __post_init__(self) -> None:
        self._began = self._last = time.monotonic()
        self._last_step = self.first_step

    @property
    def is_due(self) -> bool:
        """Whether a line would be printed now; asking costs nothing on the device."""
        return time.monotonic() - self._last >= self.every_s

    def step(self, step: int, loss: float, accuracy: float, rate: float, global_batch: int) -> None:
        """After ``step`` steps of the run: a line with loss and accuracy since the epoch's beginning."""
        now = time.monotonic()
        images_per_s = (step - self._last_step) * global_batch / max(1e-9, now - self._last)
        self._last, self._last_step = now, step
        epoch, within = divmod(step - 1, self.steps_per_epoch)
        self.say(
            f"{self.name}: epoch {epoch + 1}/{self.epochs} step {within + 1}/{self.steps_per_epoch} "
            f"loss {loss:.4f} accuracy {accuracy:.1%} rate {rate:.2g} {images_per_s:,.0f} images/s, "
            f"{self._left(step)} left"
        )

    def epoch(self, record: EpochRecord) -> None:
        """At an epoch's end: one line of its record."""
        validation = ""
        if record.validation:
            v = record.validation
            validation = f" | validation loss {v.loss:.4f} accuracy {v.accuracy:.2%} of {v.samples}"
        self.say(
            f"{self.name}: epoch {record.epoch + 1}/{self.epochs} done: loss {record.train_loss:.4f} "
            f"accuracy {record.train_accuracy:.1%} {record.images_per_s:,.0f} images/s "
            f"data wait {record.data_wait:.0%}{validation}{_trouble(record.reads)}, {self._left(record.step)} left"
        )

    def _left(self, step: int) -> str:
        done = step - self.first_step
        total = self.epochs * self.steps_per_epoch - self.first_step
        return duration((time.monotonic() - self._began) * (total - done) / max(1, done))


_FAILURES = ("bad_bodies", "deadlines", "slow_downs", "server_errors", "resets", "refusals", "other_failures")


def _trouble(reads: dict[str, float]) -> str:
    """What the store did wrong since the start, if anything: each was read again."""
    failed = {name: int(reads.get(f"read_{name}", 0)) for name in _FAILURES}
    told = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in failed.items() if count)
    return f" | reads tried again: {told}" if told else ""


def duration(seconds: float) -> str:
    """``95`` is ``1:35``, ``4000`` is ``1:06:40``."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
