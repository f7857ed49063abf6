"""Curves and parameters of a run in MLflow (``tracking.mlflow`` of the recipe)."""

from __future__ import annotations

import time
from collections.abc import Mapping

from stoker.recipe import Recipe, leaves
from stoker.storage import Location

__all__ = ["MlflowRun"]


class MlflowRun:
    """An MLflow run that is found by a tag with the run's URL, so that all attempts report to the same one."""

    def __init__(self, recipe: Recipe, run: Location) -> None:
        from mlflow.entities import Metric  # lazy: takes seconds to import
        from mlflow.tracking import MlflowClient

        settings = recipe.tracking.mlflow
        assert settings is not None
        self._metric, self._client = Metric, MlflowClient(tracking_uri=settings.uri)
        known = self._client.get_experiment_by_name(settings.experiment)
        experiment = known.experiment_id if known else self._client.create_experiment(settings.experiment)
        earlier = self._client.search_runs(
            [experiment], filter_string=f"tags.`stoker.run` = '{run.url}'", max_results=1
        )
        if earlier:
            self._run_id = earlier[0].info.run_id
            self._client.update_run(self._run_id, status="RUNNING")
            return
        created = self._client.create_run(experiment, tags={"stoker.run": run.url}, run_name=recipe.name)
        self._run_id = created.info.run_id
        for key, value in leaves(recipe.model_dump(mode="json")):
            self._client.log_param(self._run_id, key, str(value)[:500])

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        now_ms = int(time.time() * 1000)
        points = [self._metric(name, value, now_ms, step) for name, value in values.items()]
        self._client.log_batch(self._run_id, points)

    def close(self) -> None:
        self._client.set_terminated(self._run_id)
