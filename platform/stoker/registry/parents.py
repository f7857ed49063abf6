"""The model version that a recipe begins with, found in the registry and written into the recipe.

Training knows no registry: it is given the URL of the weights, their checksum, and what to call them. The first
submission of a run decides which version an alias means; whoever submits the run again goes on with that one.
"""

from __future__ import annotations

from stoker.errors import RunError
from stoker.recipe import Recipe, Source
from stoker.registry.registry import WEIGHTS, Registry
from stoker.storage import locate

__all__ = ["with_source"]

_TIMEOUT_S = 5.0


def with_source(recipe: Recipe) -> Recipe:
    """``recipe`` with ``model.source`` filled in, if its ``model.weights`` names a version.

    The registry is the one below the recipe's ``storage``.

    Raises:
        ModelError: there is no such version.
        StorageError: the registry cannot be read.
    """
    if not recipe.model.names_version or recipe.model.source is not None:
        return recipe
    storage = locate(recipe.storage, timeout_s=_TIMEOUT_S)
    source = _of_the_run(recipe)
    if source is None:
        version = Registry(storage).resolve(str(recipe.model.weights))
        source = Source(
            url=(version.location / WEIGHTS).url,
            sha256=version.files[WEIGHTS].sha256,
            reference=version.reference,
            classes=version.classes,
        )
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"source": source})})


def _of_the_run(recipe: Recipe) -> Source | None:
    """What the run began with, if it has begun, and with the same words."""
    from stoker.runs.folder import RunFolder  # brings torch, which only a fine-tune's driver waits for

    try:
        before = RunFolder(locate(recipe.storage, timeout_s=_TIMEOUT_S), recipe.name).recipe()
    except RunError:
        return None
    return before.model.source if before.model.weights == recipe.model.weights else None
