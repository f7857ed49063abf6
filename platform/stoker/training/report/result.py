"""Write the result and the report of a finished run."""

from __future__ import annotations

import platform
from collections.abc import Sequence

import ray
import torch
import torchvision

import stoker
from stoker.evaluation import EvaluationResult
from stoker.recipe import Recipe
from stoker.runs.folder import RunFolder
from stoker.runs.records import EpochRecord, History, ParitySample, Result
from stoker.training.report.pictures import mistake_pictures
from stoker.training.report.report import render_report

__all__ = ["finish_run", "versions"]


def finish_run(
    recipe: Recipe,
    run: RunFolder,
    epochs: Sequence[EpochRecord],
    *,
    evaluated: EvaluationResult,
    parity: tuple[ParitySample, ...],
    classes: tuple[str, ...],
    fingerprint: str,
    nondeterministic_operations: tuple[str, ...] = (),
) -> Result:
    """Write history, report and result of a run whose last checkpoint is stored; the result marks it as finished.

    Raises:
        StorageError: they cannot be written, or the pictures of the report cannot be read.
    """
    seconds = sum(record.seconds for record in epochs)
    images = sum(record.images_per_s * record.seconds for record in epochs)
    result = Result(
        run=recipe.name,
        checkpoint=epochs[-1].step if epochs else 0,
        epochs=recipe.schedule.epochs,
        seconds=seconds,
        images_per_s=images / max(1e-9, seconds),
        metrics=evaluated.metrics,
        confusion=tuple(tuple(row) for row in evaluated.confusion.tolist()),
        top5_by_class=tuple(evaluated.top5_by_class.tolist()),
        mistakes=evaluated.mistakes,
        parity=parity,
        parity_precision="float32",
        classes=classes,
        dataset_url=recipe.data.url,
        dataset_fingerprint=fingerprint,
        world_size=epochs[-1].world_size if epochs else 1,
        versions=versions(),
        nondeterministic_operations=nondeterministic_operations,
    )
    history = History(epochs=tuple(epochs))
    run.write_history(history)
    report = render_report(recipe, history, result, mistake_pictures(recipe, evaluated.mistakes))
    (run.location / "report.html").write(report.encode())
    run.write_result(result)
    return result


def versions() -> dict[str, str]:
    """Return the versions of the software that a run uses, and the name of its device."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU"
    return {
        "python": platform.python_version(),
        "stoker": stoker.__version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "ray": ray.__version__,
        "device": device,
    }
