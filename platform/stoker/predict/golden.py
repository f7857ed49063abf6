"""Golden predictions: pictures that a version carries, and what it predicted for them when it was published.

They are made up, so a version needs no data set to be checked: a version that was stored, copied or loaded wrongly, or
that another version of a library prepares or computes differently, predicts something else.
"""

from __future__ import annotations

import io

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from PIL import Image

from stoker.errors import ModelError
from stoker.predict.predictor import Predictor
from stoker.predict.tolerances import TOLERANCES
from stoker.registry import ModelVersion

__all__ = ["GOLDEN", "check_golden", "golden_file", "golden_pictures"]

GOLDEN = "golden.safetensors"
"""``picture_N``: uint8 [bytes], an encoded image; ``probabilities``: float32 [pictures, classes]"""
_PICTURES = 4
_WIDTH, _HEIGHT = 128, 96


def golden_pictures() -> list[bytes]:
    """The pictures, encoded: always the same."""
    return [_picture(number) for number in range(_PICTURES)]


def golden_file(predictor: Predictor) -> bytes:
    """The content of :data:`GOLDEN` for what ``predictor`` predicts."""
    pictures = golden_pictures()
    tensors = {f"picture_{n}": np.frombuffer(data, np.uint8) for n, data in enumerate(pictures)}
    return safetensors.numpy.save({**tensors, "probabilities": predictor.predict(pictures)})


def check_golden(version: ModelVersion, predictor: Predictor) -> None:
    """Compare what ``predictor`` predicts with the golden predictions that ``version`` carries.

    Raises:
        ModelError: they differ by more than the tolerance for its device and its engine's precision, or are damaged.
        StorageError: they cannot be read.
    """
    try:
        tensors = safetensors.numpy.load(version.read(GOLDEN))
        expected = tensors.pop("probabilities")
        ours = predictor.predict([tensors[f"picture_{n}"].tobytes() for n in range(len(tensors))])
        difference = float(np.abs(ours - expected).max())
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise ModelError(
            f"{version.reference}: its golden predictions are damaged ({error}); publish it again"
        ) from None
    tolerance = TOLERANCES["cpu" if predictor.device.type == "cpu" else "cuda", predictor.engine.precision]
    if not difference <= tolerance:
        raise ModelError(
            f"{version.reference} does not predict here what it did when it was published: a probability differs by "
            f"{difference:.1e} (allowed: {tolerance:g}); publish it again"
        )


def _picture(number: int) -> bytes:
    """A PNG of soft patches of colour under a grid that sharpens from left to right."""
    draws = np.random.Generator(np.random.PCG64(number))
    patches = Image.fromarray(draws.integers(0, 256, (3, 4, 3), dtype=np.uint8))
    colours: NDArray[np.int16] = np.asarray(patches.resize((_WIDTH, _HEIGHT), Image.Resampling.BICUBIC), np.int16)
    x, y = np.arange(_WIDTH), np.arange(_HEIGHT)[:, None]
    grid = ((x // (3 + number) + y // 5) % 2 * 2 - 1) * (x * 64 // _WIDTH)
    encoded = io.BytesIO()
    Image.fromarray((colours + grid[..., None]).clip(0, 255).astype(np.uint8)).save(encoded, "PNG")
    return encoded.getvalue()
