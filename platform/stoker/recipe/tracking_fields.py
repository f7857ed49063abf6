"""Fields of a recipe: the experiment trackers that a run reports to."""

from __future__ import annotations

from urllib.parse import urlsplit

from pydantic import Field, model_validator

from stoker.recipe.section import Section

__all__ = ["Mlflow", "Tracking", "Wandb"]


class Mlflow(Section):
    """MLflow. Credentials come from MLflow's own environment variables, never from a recipe."""

    uri: str = Field(
        description="URI of the tracking server or store, as MLflow takes it, without user, password or token"
    )
    experiment: str = Field("stoker", description="name of the MLflow experiment")

    @model_validator(mode="after")
    def _has_no_secret(self) -> Mlflow:
        parts = urlsplit(self.uri)
        if "@" in parts.netloc or parts.query:
            raise ValueError(
                "uri must not hold credentials; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
                "MLFLOW_TRACKING_TOKEN, in the environment of the workers"
            )
        return self


class Wandb(Section):
    """Weights & Biases. The API key comes from WANDB_API_KEY or ~/.netrc on the workers, never from a recipe."""

    project: str = Field("stoker", description="name of the project")
    entity: str | None = Field(None, description="user or team; default that of the API key")


class Tracking(Section):
    """Experiment trackers; TensorBoard's event files are always written, to <run>/tensorboard/."""

    mlflow: Mlflow | None = Field(None, description="report to MLflow; default off")
    wandb: Wandb | None = Field(None, description="report to Weights & Biases; default off")
