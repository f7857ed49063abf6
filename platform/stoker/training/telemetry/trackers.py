"""Where a run's curves go besides its own files: TensorBoard always, MLflow and Weights & Biases where the recipe says.

A tracker never ends or delays a run: it is called in a thread of its own, and one that fails is left out from then on,
with a warning. Secrets come from the environment of the workers, as each tracker's own tools read them.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Protocol

from stoker.errors import RecipeError
from stoker.recipe import Recipe, leaves
from stoker.runs.records import EpochRecord
from stoker.storage import Location
from stoker.training.telemetry.outbox import Outbox
from stoker.training.telemetry.progress import ProgressSnapshot
from stoker.training.telemetry.tensorboard import EventFiles

__all__ = ["Tracking", "check_tracking"]

logger = logging.getLogger(__name__)

_CLOSE_S = 30.0
_BEHIND = 1000
"""points that wait for a slow tracker at most; more are dropped, the run's own files have them"""


def check_tracking(recipe: Recipe) -> None:
    """Refuse a tracker that cannot be used, before anything is started.

    Raises:
        RecipeError: its package is not installed.
    """
    for name in ("mlflow", "wandb"):
        if getattr(recipe.tracking, name) is not None and importlib.util.find_spec(name) is None:
            raise RecipeError(
                f"tracking.{name}: the package {name} is not installed here; install it on every node "
                f"(uv pip install {name}), or leave tracking.{name} out"
            )


class Tracker(Protocol):
    """Takes points of curves."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class Tracking:
    """Sends what a run tells to each tracker of its recipe; for rank 0. ``run`` is the run's folder."""

    def __init__(self, recipe: Recipe, run: Location, outbox: Outbox) -> None:
        self._event_files = EventFiles(run / "tensorboard", outbox)
        self._others = [_Beside(name, make) for name, make in _others(recipe, run)]

    def standing(self, standing: ProgressSnapshot) -> None:
        """At a report interval."""
        told = {name: value for name, value in standing.as_dict().items() if name not in {"step", "epoch", "left_s"}}
        self._send(standing.step, {f"train/{name}": value for name, value in told.items()})

    def epoch(self, record: EpochRecord) -> None:
        """At an epoch's end."""
        values = {
            "epoch/train_loss": record.train_loss,
            "epoch/train_accuracy": record.train_accuracy,
            "epoch/learning_rate": record.learning_rate,
            "epoch/images_per_s": record.images_per_s,
        }
        if record.validation:
            validation = record.validation.model_dump(include={"loss", "accuracy", "top5"})
            values |= {f"validation/{name}": value for name, value in validation.items()}
        if record.goodput:
            values |= {f"goodput/{kind}": share for kind, share in record.goodput.shares.items()}
        self._send(record.step, values)

    def close(self) -> None:
        """Send what waits, for half a minute at most."""
        for other in self._others:
            other.close()

    def _send(self, step: int, values: Mapping[str, float]) -> None:
        self._event_files.scalars(step, values)
        for other in self._others:
            other.scalars(step, values)


class _Beside:
    """Calls a tracker in a thread; drops it when it fails."""

    def __init__(self, name: str, make: Callable[[], Tracker]) -> None:
        self._name = name
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=f"stoker-{name}")
        self._tracker: Tracker | None = None
        self._pending: set[Future[None]] = set()
        self._has_failed = False
        self._submit(lambda: self._begin(make))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        if len(self._pending) < _BEHIND:
            self._submit(lambda: self._tracker.scalars(step, values) if self._tracker else None)

    def close(self) -> None:
        self._submit(lambda: self._tracker.close() if self._tracker else None)
        wait(self._pending, timeout=_CLOSE_S)
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _begin(self, make: Callable[[], Tracker]) -> None:
        self._tracker = make()

    def _submit(self, action: Callable[[], None]) -> None:
        def guarded() -> None:
            if self._has_failed:
                return
            try:
                action()
            except Exception as error:  # whatever a tracker raises: it is not the run's to die of
                self._has_failed = True
                logger.warning(
                    "tracking.%s is left out from here on: %s", self._name, " ".join(str(error).split())[:300]
                )

        future = self._pool.submit(guarded)
        self._pending.add(future)
        future.add_done_callback(self._pending.discard)


def _others(recipe: Recipe, run: Location) -> Iterator[tuple[str, Callable[[], Tracker]]]:
    if recipe.tracking.mlflow:
        yield "mlflow", lambda: _Mlflow(recipe, run)
    if recipe.tracking.wandb:
        yield "wandb", lambda: _Wandb(recipe, run)


class _Mlflow:
    """A run of MLflow's that is found again by a tag, so that an attempt goes on with it."""

    def __init__(self, recipe: Recipe, run: Location) -> None:
        from mlflow.entities import Metric
        from mlflow.tracking import MlflowClient

        chosen = recipe.tracking.mlflow
        assert chosen is not None
        self._metric, self._client = Metric, MlflowClient(tracking_uri=chosen.uri)
        known = self._client.get_experiment_by_name(chosen.experiment)
        experiment = known.experiment_id if known else self._client.create_experiment(chosen.experiment)
        there = self._client.search_runs([experiment], filter_string=f"tags.`stoker.run` = '{run.url}'", max_results=1)
        if there:
            self._run = there[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
            return
        made = self._client.create_run(experiment, tags={"stoker.run": run.url}, run_name=recipe.name)
        self._run = made.info.run_id
        for key, value in leaves(recipe.model_dump(mode="json")):
            self._client.log_param(self._run, key, str(value)[:500])

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        self._client.log_batch(self._run, [self._metric(name, value, now, step) for name, value in values.items()])

    def close(self) -> None:
        self._client.set_terminated(self._run)


class _Wandb:
    """A run of Weights & Biases whose id is made of the run's URL, so that an attempt goes on with it."""

    def __init__(self, recipe: Recipe, run: Location) -> None:
        import wandb

        chosen = recipe.tracking.wandb
        assert chosen is not None
        self._run = wandb.init(
            project=chosen.project,
            entity=chosen.entity,
            id=hashlib.sha256(run.url.encode()).hexdigest()[:16],
            name=recipe.name,
            resume="allow",
            config=recipe.model_dump(mode="json"),
            settings=wandb.Settings(console="off", silent=True),
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()
