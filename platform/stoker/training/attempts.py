"""From a driver's side: start the workers, watch them, start them again when Ray's controller died, stop when asked.

Ray Train restarts workers by itself (``supervision`` says when). What it does not survive is the death of its own
controller; the driver then makes a new one, which goes on from the last checkpoint like any other attempt. The trainer
runs in a thread, so that this process can answer signals meanwhile.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from types import FrameType
from typing import Any

import ray
from ray.train import RunConfig, TrainingFailedError

from stoker.errors import RunError, StorageError
from stoker.recipe import Recipe
from stoker.training.fault_tolerance.failure_policy import cause_of_ours, forget, one_line
from stoker.training.fault_tolerance.lease import Lease
from stoker.training.fault_tolerance.ray_train import TIMEOUTS, Trainer, remove_leftovers, trainer
from stoker.training.telemetry.progress_bar import progress_bar, with_terminal_interval

__all__ = ["Attempts", "Stopped"]

logger = logging.getLogger(__name__)

_LONGEST_PAUSE_S = 30.0
_MARGIN_S = 60.0


class Stopped(Exception):
    """The run was asked to stop by ``signum`` and did, with a checkpoint; submit it again to continue."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class Attempts:
    """The attempts at a run that one driver makes, under the lease that it holds."""

    def __init__(self, recipe: Recipe, fingerprint: str, lease: Lease) -> None:
        self._recipe, self._lease = recipe, lease
        self._config = {
            "recipe": with_terminal_interval(recipe).model_dump(mode="json"),
            "fingerprint": fingerprint,
            "lease": lease.token,
        }
        self._signals: list[int] = []
        self._deaths = 0
        self._why: dict[str, Any] = {}
        for name, value in TIMEOUTS.items():
            os.environ.setdefault(name, value)

    def run(self) -> None:
        """Until the workers have ended in order.

        Raises:
            StokerError: what a rank raised; or :class:`RunError`: it failed more often than the recipe allows, or
                another driver took over.
            Stopped: it was asked to.
        """
        with self._answering_signals():
            while (error := self._attempt()) is not None:
                if isinstance(error, TrainingFailedError):
                    raise cause_of_ours(error) or self._failed(one_line(error)) from error
                if not isinstance(error, ray.exceptions.RayError):
                    raise error
                self._after_death(error)
            if self._signals:
                raise Stopped(self._signals[0])

    # -- inside ----------------------------------------------------------------------------------------------------

    def _attempt(self) -> BaseException | None:
        """One trainer, from its start to its end; returns what ended it, None when the workers were done."""
        workers = self._recipe.workers
        resources = {"CPU": float(workers.cpus)} | ({"GPU": float(workers.gpus)} if workers.gpus else {})
        with tempfile.TemporaryDirectory(prefix="stoker-train-", ignore_cleanup_errors=True) as scratch:
            name = f"{self._recipe.name}-{uuid.uuid4().hex[:8]}"
            made = trainer(
                _worker,
                self._config | {"account": name, "why": self._why},
                workers=(workers.min, workers.max),
                resources=resources,
                max_failures=workers.max_failures if workers.max_failures < 0 else workers.max_failures - self._deaths,
                resize_every_s=workers.resize_every_s,
                timeout_s=workers.stall_timeout_s + _MARGIN_S,
                # Checkpoints are stoker's own, so Ray's storage is a scratch folder that nothing relies on.
                run_config=RunConfig(name=name, storage_path=scratch),
            )
            ended: list[BaseException | None] = []
            thread = threading.Thread(target=lambda: ended.append(_fit(made)), name="stoker-fit", daemon=True)
            thread.start()
            try:
                with progress_bar(self._recipe.name):
                    self._watch(thread)
            except BaseException:
                made.abandon()
                raise
            finally:
                remove_leftovers(name)
                forget(name)
            return ended[0]

    def _watch(self, thread: threading.Thread) -> None:
        """Until ``thread`` ends: pass on a wish to stop, and end if the lease is lost or nobody obeys."""
        told_at = None
        while thread.is_alive():
            thread.join(0.1)
            if self._lease.lost.is_set():
                raise RunError(
                    f"run {self._recipe.name!r} was taken over by another driver while this one stood still; "
                    "nothing to do here"
                )
            if not self._signals:
                continue
            if told_at is None:
                told_at = time.monotonic()
                _say(f"{self._recipe.name}: asked to stop; storing a checkpoint (once more to end at once)")
                with contextlib.suppress(StorageError):
                    self._lease.ask_to_stop()
            if len(self._signals) > 1 or time.monotonic() - told_at > self._recipe.storage_timeout_s:
                raise Stopped(self._signals[0])

    def _after_death(self, error: BaseException) -> None:
        self._deaths += 1
        self._why = {"failed_at": round(time.time(), 3), "why": f"Ray's controller died: {one_line(error)}"}
        most = self._recipe.workers.max_failures
        if 0 <= most < self._deaths:
            raise self._failed(f"Ray's controller died {self._deaths} times: {one_line(error)}") from error
        pause = min(_LONGEST_PAUSE_S, 2.0 ** (self._deaths - 1) - 1)
        logger.warning("Ray's controller died (%s); a new one starts in %g s", one_line(error), pause)
        time.sleep(pause)

    def _failed(self, why: str) -> RunError:
        return RunError(
            f"run {self._recipe.name!r} failed ({why}); the log above has the rest; submit it again to continue "
            "from its last checkpoint"
        )

    @contextlib.contextmanager
    def _answering_signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT are remembered; in a thread that is not the main one they stay somebody else's."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def remember(signum: int, _: FrameType | None) -> None:
            self._signals.append(signum)

        before = {number: signal.signal(number, remember) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _fit(made: Trainer) -> BaseException | None:
    try:
        made.fit()
    except BaseException as error:
        return error
    return None


def _worker(config: dict[str, Any]) -> None:
    """What every rank calls; imported there, so that neither driver nor controller needs torch."""
    from stoker.training.worker import train_worker

    train_worker(config)


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201
