"""The driver's loop: start the workers, watch them, restart after the death of Ray's controller, stop on request.

Ray Train restarts workers by itself (``fault_tolerance.failure_policy`` decides when). What it does not survive is the
death of its own controller; the driver then starts a new one, which resumes from the last checkpoint like any other
attempt. The trainer runs in a thread, so that this process can handle signals meanwhile.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

import ray
from ray.train import RunConfig, TrainingFailedError

from stoker.deferred import defer_compiler, importing
from stoker.errors import RunError, StorageError
from stoker.recipe import Recipe
from stoker.runs.folder import RunFolder
from stoker.storage import locate
from stoker.training.fault_tolerance.failure_policy import forget_restart_reason, stoker_error_in, summarize
from stoker.training.fault_tolerance.lease import Lease
from stoker.training.fault_tolerance.left_out import StoreProbe, forget_left_out
from stoker.training.fault_tolerance.ray_train import TIMEOUTS, Trainer, build_trainer, free_placement_groups
from stoker.training.telemetry.progress_bar import progress_bar, with_terminal_interval

__all__ = ["Attempts", "Stopped"]

logger = logging.getLogger(__name__)

_MAX_BACKOFF_S = 30.0
_COLLECTIVE_MARGIN_S = 60.0


class Stopped(Exception):
    """The run stopped with a checkpoint because of signal ``signum``; submit it again to resume."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class Attempts:
    """Every attempt at a run that one driver makes, under the lease that it holds."""

    def __init__(self, recipe: Recipe, fingerprint: str, lease: Lease) -> None:
        self._recipe, self._lease = recipe, lease
        self._config = {
            "recipe": with_terminal_interval(recipe).model_dump(mode="json"),
            "fingerprint": fingerprint,
            "lease": lease.token,
        }
        self._signals: list[int] = []
        self._deaths = self._trainers = 0
        self._key = f"{recipe.name}-{lease.token[:8]}"
        self._probe = StoreProbe(recipe.data.url, RunFolder(locate(recipe.storage), recipe.name).location.url)
        self._why: dict[str, Any] = {}
        for name, value in TIMEOUTS.items():
            os.environ.setdefault(name, value)

    def run(self) -> None:
        """Train until the workers are done.

        Raises:
            StokerError: what a rank raised; or :class:`RunError`: it failed more often than the recipe allows, or
                another driver took over.
            Stopped: on SIGTERM or SIGINT.
        """
        with self._handling_signals():
            try:
                while (error := self._attempt()) is not None:
                    if isinstance(error, TrainingFailedError):
                        raise stoker_error_in(error) or self._failure(summarize(error)) from error
                    if not isinstance(error, ray.exceptions.RayError):
                        raise error
                    self._after_death(error)
            finally:
                forget_left_out(self._key)
            if self._signals:
                raise Stopped(self._signals[0])

    # -- inside ----------------------------------------------------------------------------------------------------

    def _attempt(self) -> BaseException | None:
        """Run one trainer; returns what it raised, None when the workers were done."""
        workers = self._recipe.workers
        resources = {"CPU": float(workers.cpus)} | ({"GPU": float(workers.gpus)} if workers.gpus else {})
        with tempfile.TemporaryDirectory(prefix="stoker-train-", ignore_cleanup_errors=True) as scratch:
            self._trainers += 1
            name = f"{self._key}.{self._trainers}"
            trainer = build_trainer(
                _worker,
                self._config | {"attempt": name, "why": self._why, "controller": self._trainers},
                workers=(workers.min, workers.max),
                micro_batches=self._recipe.batch.micro_batches,
                resources=resources,
                max_failures=workers.max_failures if workers.max_failures < 0 else workers.max_failures - self._deaths,
                resize_every_s=workers.resize_every_s,
                timeout_s=workers.stall_timeout_s + _COLLECTIVE_MARGIN_S,
                reaches_stores=self._probe,
                # Checkpoints are stoker's own, so Ray's storage is a scratch folder that nothing relies on.
                run_config=RunConfig(name=name, storage_path=scratch),
            )
            outcome: list[BaseException | None] = []
            thread = threading.Thread(target=lambda: outcome.append(_fit(trainer)), name="stoker-fit", daemon=True)
            thread.start()
            try:
                with progress_bar(self._recipe.name):
                    self._watch(thread)
            except BaseException:
                trainer.abandon()
                raise
            finally:
                free_placement_groups(name)
                forget_restart_reason(name)
            return outcome[0]

    def _watch(self, thread: threading.Thread) -> None:
        """Wait for ``thread``; pass on a stop request, and raise if the lease is lost or the workers do not stop."""
        requested_at = None
        while thread.is_alive():
            thread.join(0.1)
            if self._lease.lost.is_set():
                raise RunError(
                    f"run {self._recipe.name!r} was taken over by another driver while this one was suspended; "
                    "nothing to do here"
                )
            if not self._signals:
                continue
            if requested_at is None:
                requested_at = time.monotonic()
                _say(f"{self._recipe.name}: stopping after a checkpoint (interrupt again to exit at once)")
                with contextlib.suppress(StorageError):
                    self._lease.request_stop()
            if len(self._signals) > 1 or time.monotonic() - requested_at > self._recipe.storage_timeout_s:
                raise Stopped(self._signals[0])

    def _after_death(self, error: BaseException) -> None:
        self._deaths += 1
        self._why = {"failed_at": round(time.time(), 3), "why": f"Ray's controller died: {summarize(error)}"}
        allowed = self._recipe.workers.max_failures
        if 0 <= allowed < self._deaths:
            raise self._failure(f"Ray's controller died {self._deaths} times: {summarize(error)}") from error
        pause = min(_MAX_BACKOFF_S, 2.0 ** (self._deaths - 1) - 1)
        logger.warning("Ray's controller died (%s); starting a new one in %g s", summarize(error), pause)
        time.sleep(pause)

    def _failure(self, why: str) -> RunError:
        return RunError(
            f"run {self._recipe.name!r} failed ({why}); see the log above; submit it again to resume "
            "from its last checkpoint"
        )

    @contextlib.contextmanager
    def _handling_signals(self) -> Iterator[None]:
        """Record SIGTERM and SIGINT; outside of the main thread their handlers stay as they are."""
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


def _fit(trainer: Trainer) -> BaseException | None:
    try:
        trainer.fit()
    except BaseException as error:
        return error
    return None


def _worker(config: dict[str, Any]) -> None:
    """Run one rank; imported there, so that neither driver nor controller needs torch."""
    if not config["recipe"]["compile"]:
        defer_compiler()
    with importing():
        from stoker.training.worker import train_worker

    train_worker(config)


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201
