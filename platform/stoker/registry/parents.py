"""Resolve the model version that a run is initialized from, and record it in the recipe.

Training does not use the registry: it gets the URL of the weights, their checksum and their name. The first submission
of a run decides which version an alias means; submitting the run again resumes with the same version.
"""

from __future__ import annotations

from stoker.errors import RunError
from stoker.recipe import Recipe, Source
from stoker.registry.registry import WEIGHTS, Registry
from stoker.runs.folder import RunFolder
from stoker.storage import locate

__all__ = ["with_source"]

_TIMEOUT_S = 5.0


def with_source(recipe: Recipe) -> Recipe:
    """A copy of ``recipe`` with ``model.source`` set, if its ``model.weights`` names a model version.

    The version is looked up in the registry below the recipe's ``storage``.

    Raises:
        ModelError: the model, version or alias does not exist.
        StorageError: the registry cannot be read.
    """
    if not recipe.model.names_version or recipe.model.source is not None:
        return recipe
    storage = locate(recipe.storage, timeout_s=_TIMEOUT_S)
    source = _recorded_source(recipe)
    if source is None:
        version = Registry(storage).resolve(str(recipe.model.weights))
        source = Source(
            url=(version.location / WEIGHTS).url,
            sha256=version.files[WEIGHTS].sha256,
            reference=version.reference,
            classes=version.classes,
        )
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"source": source})})


def _recorded_source(recipe: Recipe) -> Source | None:
    """The source that the run was initialized from, if it exists and its recipe names the same weights."""
    try:
        before = RunFolder(locate(recipe.storage, timeout_s=_TIMEOUT_S), recipe.name).recipe()
    except RunError:
        return None
    return before.model.source if before.model.weights == recipe.model.weights else None
