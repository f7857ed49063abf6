"""Send a run's curves to experiment trackers: TensorBoard always, others where the recipe names them.

A tracker never delays or fails a run: each is called in a thread of its own, and one that raises is disabled with a
warning. Secrets come from the environment of the workers, as each tracker's own tools read them.

A new tracker is a class with the methods of :class:`Tracker`, a row in ``TRACKERS``, its settings in
``stoker.recipe.tracking_fields`` under the row's name, and a test.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Protocol

from stoker.errors import RecipeError
from stoker.recipe import Recipe
from stoker.runs.records import EpochRecord
from stoker.storage import Location
from stoker.training.telemetry.mlflow import MlflowRun
from stoker.training.telemetry.outbox import Outbox
from stoker.training.telemetry.progress import ProgressSnapshot
from stoker.training.telemetry.tensorboard import EventFiles
from stoker.training.telemetry.wandb import WandbRun

__all__ = ["TRACKERS", "Tracker", "TrackerRow", "Trackers", "check_trackers"]

logger = logging.getLogger(__name__)

_CLOSE_TIMEOUT_S = 30.0
_QUEUE_LIMIT = 1000
"""points that wait for a slow tracker at most; more are dropped, the run's own files have them"""


class Tracker(Protocol):
    """Takes the points of curves."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point at ``step`` (of the whole run) to the curve of each name."""

    def close(self) -> None:
        """Flush, and mark the attempt as ended."""


@dataclass(frozen=True)
class TrackerRow:
    """How a tracker is enabled and started."""

    name: str
    """the key below ``tracking`` in the recipe that enables it"""
    package: str
    """what it imports"""
    start: Callable[[Recipe, Location, Outbox], Tracker]
    """called in the tracker's thread with the recipe, the run's folder and the outbox of the rank"""
    is_always_on: bool = False

    def is_enabled(self, recipe: Recipe) -> bool:
        return self.is_always_on or getattr(recipe.tracking, self.name) is not None


TRACKERS = (
    TrackerRow(
        "tensorboard", "tensorboardX", lambda _, run, outbox: EventFiles(run / "tensorboard", outbox), is_always_on=True
    ),
    TrackerRow("mlflow", "mlflow", lambda recipe, run, _: MlflowRun(recipe, run)),
    TrackerRow("wandb", "wandb", lambda recipe, run, _: WandbRun(recipe, run)),
)


def check_trackers(recipe: Recipe) -> None:
    """Check that the package of each tracker in ``recipe`` is installed.

    Raises:
        RecipeError: a package is not installed.
    """
    for row in TRACKERS:
        if row.is_enabled(recipe) and importlib.util.find_spec(row.package) is None:
            remedy = "" if row.is_always_on else f", or leave tracking.{row.name} out"
            raise RecipeError(
                f"tracking.{row.name}: the package {row.package} is not installed here; install it on every node "
                f"(uv pip install {row.package}){remedy}"
            )


class Trackers:
    """The trackers of a run, on rank 0; ``run`` is the run's folder."""

    def __init__(self, recipe: Recipe, run: Location, outbox: Outbox) -> None:
        self._threads = [_TrackerThread(row, recipe, run, outbox) for row in TRACKERS if row.is_enabled(recipe)]

    def snapshot(self, snapshot: ProgressSnapshot) -> None:
        """Send the progress at a report interval, as ``train/…``."""
        values = {name: value for name, value in snapshot.as_dict().items() if name not in {"step", "epoch", "left_s"}}
        self._send(snapshot.step, {f"train/{name}": value for name, value in values.items()})

    def epoch(self, record: EpochRecord) -> None:
        """Send the record of an epoch that has ended, as ``epoch/…``, ``validation/…`` and ``goodput/…``."""
        values = {
            "epoch/train_loss": record.train_loss,
            "epoch/train_accuracy": record.train_accuracy,
            "epoch/learning_rate": record.learning_rate,
            "epoch/images_per_s": record.images_per_s,
        }
        if record.validation:
            values |= {f"validation/{name}": value for name, value in record.validation.figures().items()}
        if record.goodput:
            values |= {f"goodput/{kind}": fraction for kind, fraction in record.goodput.fractions.items()}
        self._send(record.step, values)

    def flush(self, timeout_s: float = _CLOSE_TIMEOUT_S) -> None:
        """Wait until each tracker has taken what was sent, up to ``timeout_s`` seconds for each."""
        for thread in self._threads:
            thread.flush(timeout_s)

    def close(self) -> None:
        """Send what is queued, and close each tracker; waits up to half a minute for each."""
        for thread in self._threads:
            thread.close()

    def _send(self, step: int, values: Mapping[str, float]) -> None:
        for thread in self._threads:
            thread.scalars(step, values)


class _TrackerThread:
    """Calls a tracker in a thread, and disables it when it raises."""

    def __init__(self, row: TrackerRow, recipe: Recipe, run: Location, outbox: Outbox) -> None:
        self._name = row.name
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=f"stoker-{row.name}")
        self._tracker: Tracker | None = None
        self._pending: set[Future[None]] = set()
        self._has_failed = False
        self._submit(lambda: self._start(lambda: row.start(recipe, run, outbox)))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        if len(self._pending) < _QUEUE_LIMIT:
            self._submit(lambda: self._tracker.scalars(step, values) if self._tracker else None)

    def flush(self, timeout_s: float) -> None:
        wait(self._pending, timeout=timeout_s)

    def close(self) -> None:
        self._submit(lambda: self._tracker.close() if self._tracker else None)
        self.flush(_CLOSE_TIMEOUT_S)
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _start(self, start: Callable[[], Tracker]) -> None:
        self._tracker = start()

    def _submit(self, action: Callable[[], None]) -> None:
        def guarded() -> None:
            if self._has_failed:
                return
            try:
                action()
            except Exception as error:  # whatever a tracker raises must not fail the run
                self._has_failed = True
                logger.warning(
                    "tracker %s failed and is disabled for this attempt: %s",
                    self._name,
                    " ".join(str(error).split())[:300],
                )

        future = self._pool.submit(guarded)
        self._pending.add(future)
        future.add_done_callback(self._pending.discard)
