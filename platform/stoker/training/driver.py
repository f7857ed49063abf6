"""What the job does before and around the ranks: check everything, then run Ray Train until the run is finished."""

from __future__ import annotations

import logging
import os
import socket
import tempfile
import uuid

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from stoker.dataset import Manifest, read_manifest
from stoker.dataset.order import EpochOrder
from stoker.errors import ClusterError, RecipeError, RunError, StokerError
from stoker.recipe import Recipe
from stoker.storage import locate
from stoker.training.models import check_model
from stoker.training.records import Result
from stoker.training.runs import RunFolder
from stoker.training.terminal import on_terminal, progress_bar
from stoker.training.tracking import check_tracking
from stoker.training.worker import train_worker

__all__ = ["check_recipe", "train"]

logger = logging.getLogger(__name__)

_DOOR_PATIENCE_S = 5.0
_COLLECTIVE_TIMEOUT_S = 300


def check_recipe(recipe: Recipe) -> Manifest:
    """Everything that can be known to fail before a resource is taken; returns the data set's manifest.

    Raises:
        RecipeError: the recipe does not fit the data set.
        DatasetError, ModelError, StorageError: the data set, the model or the store is not there.
    """
    manifest = read_manifest(locate(recipe.data.url, patience_s=_DOOR_PATIENCE_S))
    for key, name in (("train_split", recipe.data.train_split), ("validation_split", recipe.data.validation_split)):
        if name not in manifest.splits:
            raise RecipeError(f"data.{key}: {recipe.data.url} has no split {name!r}; {_names(manifest)}")
    given, there = recipe.model.classes, len(manifest.classes)
    if given is not None and given != there:
        raise RecipeError(
            f"model.classes: {given} given, but the data set {recipe.data.url} has {there} classes; "
            f"set it to {there} or leave it out"
        )
    samples = manifest.split(recipe.data.train_split).samples
    try:
        EpochOrder(samples, recipe.batch.total, 0, last_batch=recipe.data.last_batch)
    except ValueError as error:
        raise RecipeError(f"batch.total: {error}") from None
    check_model(recipe.model.name, classes=there, drop_rate=recipe.model.drop_rate)
    check_tracking(recipe)
    return manifest


def train(recipe: Recipe) -> Result:
    """Train, or go on with, the run that ``recipe`` names, on the Ray cluster at hand; returns its result.

    Raises:
        RecipeError, DatasetError, ModelError, StorageError: see :func:`check_recipe`.
        RunError: the run cannot be continued with this recipe, or failed more often than the recipe allows.
    """
    manifest = check_recipe(recipe)
    run = RunFolder(locate(recipe.storage, patience_s=_DOOR_PATIENCE_S), recipe.name)
    run.begin(recipe)
    if result := run.result():
        _say(f"{recipe.name}: finished already, see {run.location}; another name trains anew")
        return result
    newest = run.latest_checkpoint()
    _say(
        f"{recipe.name}: {recipe.model.name} on {recipe.data.url} "
        f"({manifest.split(recipe.data.train_split).samples} samples, {len(manifest.classes)} classes), "
        f"{recipe.schedule.epochs} epochs, {_workers(recipe)}, "
        + (f"continuing from step {newest.step}" if newest else "from the beginning")
    )
    if not ray.is_initialized():
        _must_answer(os.environ.get("RAY_ADDRESS", ""))
        ray.init(log_to_driver=True)
    _fit(recipe, manifest.fingerprint)
    if result := run.result():
        return result
    raise RunError(f"run {recipe.name!r} ended without a result at {run.location}; submit it again to continue")


def _fit(recipe: Recipe, fingerprint: str) -> None:
    """Run the workers. Checkpoints are stoker's own, so Ray's storage is a scratch folder that nothing relies on."""
    scaling, workers = recipe.workers, (recipe.workers.min, recipe.workers.max)
    resources = {"CPU": float(scaling.cpus)} | ({"GPU": float(scaling.gpus)} if scaling.gpus else {})
    with tempfile.TemporaryDirectory(prefix="stoker-train-", ignore_cleanup_errors=True) as scratch:
        trainer = TorchTrainer(
            train_worker,
            train_loop_config={"recipe": on_terminal(recipe).model_dump(mode="json"), "fingerprint": fingerprint},
            torch_config=TorchConfig(timeout_s=_COLLECTIVE_TIMEOUT_S),
            scaling_config=ScalingConfig(
                num_workers=workers[0] if workers[0] == workers[1] else workers,
                use_gpu=bool(scaling.gpus),
                resources_per_worker=resources,
            ),
            run_config=RunConfig(
                name=f"{recipe.name}-{uuid.uuid4().hex[:8]}",
                storage_path=scratch,
                failure_config=FailureConfig(max_failures=scaling.max_failures),
            ),
        )
        try:
            with progress_bar(recipe.name):
                trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise _reason(error, recipe) from error


def _must_answer(address: str) -> None:
    """Refuse an address where no cluster listens in seconds; ``ray.init`` would try for minutes.

    Raises:
        ClusterError: nothing listens at ``address`` (``host:port``; anything else is Ray's to judge).
    """
    host, colon, port = address.rpartition(":")
    if not colon or "/" in address or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_DOOR_PATIENCE_S).close()
    except OSError as error:
        raise ClusterError(
            f"no Ray cluster answers at RAY_ADDRESS {address} ({error.strerror or error}); start one with make up, "
            "or unset it"
        ) from None


def _reason(error: BaseException, recipe: Recipe) -> StokerError:
    """The error of ours that ended the workers, or one line that says what did."""
    failures = getattr(error, "worker_failures", {})
    for failure in failures.values():
        cause: BaseException | None = getattr(failure, "_base_exc", failure)
        while cause is not None:
            if isinstance(cause, StokerError):
                return cause
            cause = cause.__cause__
    first = next((f"rank {rank}: {failure}" for rank, failure in failures.items()), str(error))
    line = " ".join(first.split())
    return RunError(
        f"run {recipe.name!r} failed ({line[:300]}); the log above has the rest; submit it again to continue "
        "from its last checkpoint"
    )


def _names(manifest: Manifest) -> str:
    return "it has " + ", ".join(sorted(manifest.splits))


def _workers(recipe: Recipe) -> str:
    low, high = recipe.workers.min, recipe.workers.max
    count = f"{low}" if low == high else f"{low} to {high}"
    return f"{count} workers on {'GPUs' if recipe.workers.gpus else 'CPUs'}"


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201
