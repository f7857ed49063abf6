"""Prediction parity: compare a published version's predictions with the trainer's own evaluation."""

from __future__ import annotations

import numpy as np

from stoker.dataset import SampleReader
from stoker.errors import ModelError
from stoker.predict.predictor import Predictor
from stoker.recipe import Recipe
from stoker.registry import ModelVersion
from stoker.runs.records import Result
from stoker.storage import locate

__all__ = ["TOLERANCES", "check_parity"]

TOLERANCES = {
    ("cpu", "float32"): 1e-4,
    ("cuda", "float32"): 3e-4,
    ("cpu", "bfloat16"): 2e-2,
    ("cuda", "bfloat16"): 2e-2,
    ("cpu", "float16"): 2e-2,
    ("cuda", "float16"): 2e-2,
}
"""Largest difference of a probability between trainer and version, by device and by the trainer's precision.

The device is cuda if either of them computes there. Both compute in full float32, so what differs is how samples are
batched, and on a GPU the algorithms of convolutions; TF32 differs by 1.1e-3 (ResNet-50, emulated). The other precisions
are those of runs that were stored before parity was always in float32.
"""


def check_parity(version: ModelVersion, recipe: Recipe, result: Result) -> None:
    """Compare ``version``'s predictions of the run's parity samples with those of the trainer's own evaluation.

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
