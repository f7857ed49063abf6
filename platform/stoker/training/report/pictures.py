"""Small pictures of the worst mistakes for the report."""

from __future__ import annotations

import base64
import contextlib
import io
from collections.abc import Iterable

from PIL import Image

from stoker.dataset import SampleReader, UndecodableImage
from stoker.dataset.decode import evaluation_image
from stoker.recipe import Recipe
from stoker.runs.records import Mistake
from stoker.storage import locate

__all__ = ["mistake_pictures"]

_SIDE = 160
"""pixels; larger pictures are scaled down, smaller ones are kept"""


def mistake_pictures(recipe: Recipe, mistakes: Iterable[Mistake]) -> dict[int, str]:
    """Return the model's input for each of ``mistakes`` as a ``data:`` URL of a small JPEG, by sample number.

    A sample that cannot be decoded (evaluation may have replaced it, ``data.on_corrupt``) is omitted.

    Raises:
        StorageError, DatasetError: the samples cannot be read.
    """
    numbers = sorted(mistake.number for mistake in mistakes)
    reader = SampleReader(locate(recipe.data.url, timeout_s=recipe.storage_timeout_s), recipe.data.validation_split)
    pictures = {}
    for sample in reader.read(numbers):
        with contextlib.suppress(UndecodableImage):
            pictures[sample.number] = _picture(recipe, sample.data)
    return pictures


def _picture(recipe: Recipe, data: memoryview) -> str:
    pixels = evaluation_image(data, image_size=recipe.evaluation_image_size, resize=recipe.evaluation_resize)
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    image.thumbnail((_SIDE, _SIDE))
    body = io.BytesIO()
    image.save(body, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(body.getvalue()).decode()
