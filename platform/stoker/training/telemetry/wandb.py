"""Curves and the recipe of a run in Weights & Biases (``tracking.wandb`` of the recipe)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from stoker.recipe import Recipe
from stoker.storage import Location

__all__ = ["WandbRun"]


class WandbRun:
    """A Weights & Biases run whose id is derived from the run's URL, so that all attempts report to the same one."""

    def __init__(self, recipe: Recipe, run: Location) -> None:
        import wandb  # lazy: takes seconds to import

        settings = recipe.tracking.wandb
        assert settings is not None
        self._run = wandb.init(
            project=settings.project,
            entity=settings.entity,
            id=hashlib.sha256(run.url.encode()).hexdigest()[:16],
            name=recipe.name,
            resume="allow",
            config=recipe.model_dump(mode="json"),
            settings=wandb.Settings(console="off", silent=True),
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()
