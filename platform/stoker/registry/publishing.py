"""Publish a finished run as a model version, if it passes the gate.

The gate: the run is finished; its metrics were measured on every sample of the validation split; and the version, as
staged in the store, predicts for the run's parity samples what the trainer's own evaluation predicted.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping

from stoker.errors import DatasetError, ModelError, RunError
from stoker.recipe import Recipe
from stoker.registry.card import ModelCard, Preprocessing, StoredFile
from stoker.registry.copying import SourceFile
from stoker.registry.registry import WEIGHTS, ModelVersion, Registry
from stoker.runs.folder import RunFolder
from stoker.runs.records import Result
from stoker.storage import Location, locate

__all__ = ["publish_run"]

Verify = Callable[[ModelVersion, Recipe, Result], Mapping[str, bytes] | None]


def publish_run(storage: Location, run: str, name: str, *, verify: Verify, alias: str | None = None) -> ModelVersion:
    """Publish the run ``run`` as a new version of ``name``, and point ``alias`` at it.

    The weights are the checkpoint's file, copied as it is. ``verify`` is called with the staged version, the run's
    recipe and its result, and raises :class:`ModelError` if the version's predictions differ from the trainer's
    (``stoker.predict.check_parity``); what it returns are more files of the version.

    Raises:
        RunError: the run does not exist, has no checkpoint, or is not finished.
        ModelError: the version does not pass the gate.
        StorageError: the store cannot be read or written, or the checkpoint is not what its manifest records.
    """
    registry = Registry(storage)
    registry.check_name(name)
    if alias is not None:
        registry.check_alias_name(name, alias)
    folder = RunFolder(storage, run)
    recipe = folder.recipe()
    checkpoint = folder.latest_checkpoint()
    if checkpoint is None:
        raise RunError(f"run {run!r} has no checkpoint at {folder.checkpoints}; train it first with stoker train")
    result = folder.result()
    if result is None or result.checkpoint != checkpoint.step:
        raise RunError(
            f"run {run!r} is not finished (last checkpoint at step {checkpoint.step}); run stoker train again with the "
            "same name to resume it"
        )
    _check_metrics(recipe, result)
    card = ModelCard(
        architecture=recipe.model.name,
        classes=result.classes,
        preprocessing=Preprocessing(
            image_size=recipe.evaluation_image_size,
            resize=recipe.evaluation_resize,
            mean=recipe.data.mean,
            std=recipe.data.std,
        ),
        metrics=result.metrics,
        recipe=recipe.model_dump(mode="json"),
        run=run,
        dataset_url=result.dataset_url,
        dataset_fingerprint=result.dataset_fingerprint,
        parent=recipe.model.parent,
        published=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        versions=result.versions,
    )
    weights = checkpoint.weights_file()
    files: dict[str, bytes | SourceFile] = {
        WEIGHTS: SourceFile(checkpoint.location / weights, StoredFile.model_validate(checkpoint.files[weights]))
    }
    report = folder.location / "report.html"
    if report.exists():
        files["report.html"] = report.read()
    return registry.publish(name, card, files, verify=lambda staged: verify(staged, recipe, result), alias=alias)


def _check_metrics(recipe: Recipe, result: Result) -> None:
    from stoker.dataset import read_manifest

    try:
        manifest = read_manifest(locate(result.dataset_url))
    except DatasetError as error:
        raise ModelError(f"the metrics of run {result.run!r} cannot be checked: {error}") from None
    if manifest.fingerprint != result.dataset_fingerprint:
        raise ModelError(
            f"the data set at {result.dataset_url} has changed since run {result.run!r} was trained on it, so its "
            "metrics cannot be checked; train the run again under a new name"
        )
    expected = manifest.split(recipe.data.validation_split).samples
    if result.metrics.samples != expected:
        raise ModelError(
            f"run {result.run!r} was evaluated on {result.metrics.samples} of {expected} validation samples; "
            "train it again and evaluate on all of them"
        )
