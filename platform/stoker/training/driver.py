"""The driver of a run: check everything before a resource is taken, then run Ray Train until the run is finished."""

from __future__ import annotations

import importlib
import os
import socket
import threading

import ray

from stoker.dataset.format.manifest import Manifest, read_manifest
from stoker.dataset.order import EpochOrder
from stoker.errors import ClusterError, RecipeError, RunError
from stoker.models.catalog import check_model_name, family_of
from stoker.recipe import Recipe
from stoker.runs.folder import RunFolder
from stoker.runs.records import Result
from stoker.storage import locate
from stoker.training.fault_tolerance.lease import Lease
from stoker.training.telemetry.trackers import check_trackers

__all__ = ["check_recipe", "train"]

_CHECK_TIMEOUT_S = 5.0


def check_recipe(recipe: Recipe) -> Manifest:
    """Check all that can be checked before a resource is taken; returns the data set's manifest.

    Raises:
        RecipeError: the recipe does not fit the data set.
        DatasetError, ModelError, StorageError: the data set, model or object store cannot be found or read, or the
            model does not support what the recipe asks of it.
    """
    if recipe.refusal:
        raise RecipeError(recipe.refusal)
    manifest = read_manifest(locate(recipe.data.url, timeout_s=_CHECK_TIMEOUT_S))
    for key, name in (("train_split", recipe.data.train_split), ("validation_split", recipe.data.validation_split)):
        if name not in manifest.splits:
            raise RecipeError(f"data.{key}: {recipe.data.url} has no split {name!r}; {_names(manifest)}")
    given, actual = recipe.model.classes, len(manifest.classes)
    if given is not None and given != actual:
        raise RecipeError(
            f"model.classes: {given} given, but the data set {recipe.data.url} has {actual} classes; "
            f"set it to {actual} or leave it out"
        )
    samples = manifest.split(recipe.data.train_split).samples
    try:
        EpochOrder(samples, recipe.batch.total, 0, last_batch=recipe.data.last_batch)
    except ValueError as error:
        raise RecipeError(f"batch.total: {error}") from None
    check_model_name(recipe.model.name)
    _require_deterministic(recipe)
    last = _last_micro_batch(recipe, samples)
    if _needs_model_check(recipe, last):
        from stoker.models.initialize import (
            check_initialization,  # brings torch and torchvision, seconds of processor time
        )

        if initial := check_initialization(recipe, manifest.classes, timeout_s=_CHECK_TIMEOUT_S, last=last):
            _say(f"{recipe.name}: {initial}")
    check_trackers(recipe)
    return manifest


def train(recipe: Recipe) -> Result:
    """Train or resume the run that ``recipe`` names on the current Ray cluster; returns its result.

    Raises:
        RecipeError, DatasetError, ModelError, StorageError: see :func:`check_recipe`.
        RunError: the run cannot be resumed with this recipe, already has a driver, or failed more often than the
            recipe allows.
        SystemExit: stopped by SIGTERM or SIGINT, with a checkpoint; the code is 128 + the signal's number.
    """
    # Ray Train takes seconds to import: meanwhile the object store and the head node answer.
    threading.Thread(target=importlib.import_module, args=("stoker.training.attempts",), daemon=True).start()
    manifest = check_recipe(recipe)
    run = RunFolder(locate(recipe.storage, timeout_s=_CHECK_TIMEOUT_S), recipe.name)
    run.begin(recipe)
    if result := run.result():
        _say(f"{recipe.name}: already finished, see {run.location}; choose another name to train again")
        return result
    if not ray.is_initialized():
        _require_cluster(os.environ.get("RAY_ADDRESS", ""))
    with Lease(run.lease) as lease:
        if result := run.result():  # the previous driver has just finished
            return result
        newest = run.latest_checkpoint()
        _say(
            f"{recipe.name}: {recipe.model.name} on {recipe.data.url} "
            f"({manifest.split(recipe.data.train_split).samples} samples, {len(manifest.classes)} classes), "
            f"{recipe.schedule.epochs} epochs, {_workers(recipe)}, "
            + (f"resuming from step {newest.step}" if newest else "from the start")
        )
        if not ray.is_initialized():
            _connect()
        from stoker.training.attempts import Attempts, Stopped

        try:
            Attempts(recipe, manifest.fingerprint, lease).run()
        except Stopped as stopped:
            newest = run.latest_checkpoint()
            where = f"at step {newest.step}" if newest else "before its first checkpoint"
            _say(f"{recipe.name}: stopped {where} on {stopped}; submit it again to resume")
            raise SystemExit(128 + stopped.signum) from None
    if result := run.result():
        return result
    raise RunError(f"run {recipe.name!r} ended without a result at {run.location}; submit it again to resume")


def _connect() -> None:
    """Connect to the cluster, or start one of this machine alone.

    Raises:
        ClusterError: it does not answer, or does not start in time.
    """
    try:
        ray.init(log_to_driver=True)
    except Exception as error:  # Ray raises this class itself where its processes do not start in time
        reason = " ".join(str(error).split())[:200]
        raise ClusterError(
            f"the Ray cluster cannot be started or reached ({reason}); try again when this machine is less busy, or "
            "keep one running: stoker up"
        ) from error


def _require_deterministic(recipe: Recipe) -> None:
    family = family_of(recipe.model.name)
    has_heads = bool(family.auxiliary_heads) and recipe.loss.auxiliary_weight != 0
    operation = family.nondeterministic_on_gpu or (family.nondeterministic_heads_on_gpu if has_heads else None)
    if operation and recipe.reproducible and recipe.workers.gpus:
        raise RecipeError(
            f"reproducible: on GPUs the gradient of {operation} in {recipe.model.name} has no deterministic algorithm; "
            "set it to false, choose another model, or set workers.gpus to 0"
        )


def _last_micro_batch(recipe: Recipe, samples: int) -> int:
    """Samples of an epoch's last micro-batch."""
    rest = 0 if recipe.data.last_batch == "drop" else samples % recipe.batch.micro
    return rest or recipe.batch.micro


def _needs_model_check(recipe: Recipe, last: int) -> bool:
    """Whether the model could refuse the recipe for more than its name, which takes torch to find out.

    A plain model of a family that takes images of any size is not built here: a start is faster without torch.
    """
    varies_size = recipe.data.resizing is not None or recipe.evaluation.image_size is not None
    least = family_of(recipe.model.name).least_side
    takes_any_size = least is not None and recipe.data.image_size >= least and min(recipe.batch.micro, last) > 1
    return recipe.model.needs_model_check or varies_size or not takes_any_size


def _require_cluster(address: str) -> None:
    """Fail within seconds if no cluster listens at ``address``; ``ray.init`` would retry for minutes.

    Raises:
        ClusterError: nothing listens at ``address`` (``host:port``; any other form is left to Ray).
    """
    host, colon, port = address.rpartition(":")
    if not colon or "/" in address or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CHECK_TIMEOUT_S).close()
    except OSError as error:
        raise ClusterError(
            f"no Ray cluster answers at RAY_ADDRESS {address} ({error.strerror or error}); start one with stoker up, "
            "or unset it"
        ) from None


def _names(manifest: Manifest) -> str:
    return "it has " + ", ".join(sorted(manifest.splits))


def _workers(recipe: Recipe) -> str:
    low, high = recipe.workers.min, recipe.workers.max
    count = f"{low}" if low == high else f"{low} to {high}"
    return f"{count} workers on {'GPUs' if recipe.workers.gpus else 'CPUs'}"


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201
