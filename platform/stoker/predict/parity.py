"""Prediction parity: compare a published version's predictions with the trainer's own evaluation."""

from __future__ import annotations

import numpy as np

from stoker.dataset import SampleReader
from stoker.errors import ModelError
from stoker.predict.golden import GOLDEN, golden_file
from stoker.predict.predictor import Predictor
from stoker.predict.tolerances import TOLERANCES
from stoker.recipe import Recipe
from stoker.registry import ModelVersion
from stoker.runs.records import Result
from stoker.storage import locate

__all__ = ["check_parity"]


def check_parity(version: ModelVersion, recipe: Recipe, result: Result) -> dict[str, bytes]:
    """Compare ``version``'s predictions of the run's parity samples with those of the trainer's own evaluation.

    Returns the version's golden predictions, as the file that it shall carry.

    Raises:
        ModelError: they differ by more than the tolerance, or the run stored nothing to compare with.
    """
    if not result.parity:
        raise ModelError(
            f"run {result.run!r} stored no predictions to compare {version.reference} with; train it again"
        )
    predictor = Predictor(version)
    reader = SampleReader(locate(recipe.data.url), recipe.data.validation_split)
    samples = reader.read([sample.number for sample in result.parity])
    ours = predictor.predict([bytes(sample.data) for sample in samples])
    trained = np.array([sample.probabilities for sample in result.parity], dtype=np.float32)
    is_on_cpu = predictor.device.type == "cpu" and (result.versions.get("device") or "CPU").endswith("CPU")
    tolerance = TOLERANCES["cpu" if is_on_cpu else "cuda", result.parity_precision or recipe.precision]
    difference = np.abs(ours - trained).max(axis=1)
    worst = int(difference.argmax())
    if not difference[worst] <= tolerance:
        raise ModelError(
            f"{version.reference} does not predict what run {result.run!r} did: sample {samples[worst].key} differs "
            f"by {difference[worst]:.1e} (allowed: {tolerance:g}); nothing was published, train the run again"
        )
    return {GOLDEN: golden_file(predictor)}
