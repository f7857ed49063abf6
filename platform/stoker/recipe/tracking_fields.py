"""The fields of a recipe that say where else a run's curves go."""

from __future__ import annotations

from urllib.parse import urlsplit

from pydantic import Field, model_validator

from stoker.recipe.section import Section

__all__ = ["Mlflow", "Tracking", "Wandb"]


class Mlflow(Section):
    """Credentials come from MLflow's own environment variables, never from here."""

    uri: str = Field(description="the tracking server or store, as MLflow takes it; no user, password or token in it")
    experiment: str = "stoker"

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
    """The API key comes from WANDB_API_KEY or ~/.netrc on the workers, never from here."""

    project: str = "stoker"
    entity: str | None = Field(None, description="user or team; default: that of the API key")


class Tracking(Section):
    """Where else a run's curves go; TensorBoard's event files are always written, to <run>/tensorboard/."""

    mlflow: Mlflow | None = None
    wandb: Wandb | None = None
