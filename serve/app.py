"""Build the Serve application: ``import_path: stoker_serve.app:build`` (see serve/digits.yaml).

Serve reads ``build``'s annotation to check ``args``, so annotations are not postponed in this module.
"""

from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from .answers import Answer, Description, Refusal
from .keys import Keys
from .model import Replica
from .protocol import make_app
from .settings import INGRESS, Deployed, Settings

__all__ = ["build"]

_RETRY_AFTER_S = 1
# Serve's own queues are unbounded by default; the YAML may set other bounds.
_BOUNDED = {"max_queued_requests": 128, "backpressure_config": {"retry_after_s": _RETRY_AFTER_S}}


class Http:
    """The ingress deployment: answers HTTP and passes images to the models' replicas."""

    def __init__(self, settings: dict[str, Any], deployed: list[dict[str, Any]], **handles: DeploymentHandle) -> None:
        self._settings = Settings.model_validate(settings)
        self._deployed = [Deployed.model_validate(model) for model in deployed]
        self._handles = handles

    def __serve_build_asgi_app__(self) -> FastAPI:
        keys = Keys.from_environment() if self._settings.authentication == "keys" else None
        served = {name: Remote(name, handle) for name, handle in self._handles.items()}
        return make_app(self._settings, self._deployed, served, keys)


class Remote:
    """A handle to a model's replicas, as :class:`stoker_serve.answers.Served`."""

    def __init__(self, name: str, handle: DeploymentHandle) -> None:
        self._name = name
        self._handle = handle

    async def predict(self, images: list[bytes], top: int) -> Answer | Refusal:
        try:
            return await self._handle.predict.remote(images, top)
        except (BackPressureError, DeploymentUnavailableError, RayActorError) as error:
            return self._busy(error)

    async def describe(self) -> Description:
        try:
            return await self._handle.describe.remote()
        except (BackPressureError, DeploymentUnavailableError, RayActorError) as error:
            raise self._busy(error) from None

    def _busy(self, error: Exception) -> Refusal:
        if isinstance(error, BackPressureError):
            code, message = "busy", f"all replicas of {self._name} are busy and the queue is full; try again"
        else:
            code, message = "unavailable", f"no replica of {self._name} is available; try again"
        return Refusal(503, code, message, {"Retry-After": str(_RETRY_AFTER_S)})


def build(settings: Settings) -> serve.Application:
    """Build one deployment for each model, with the model's name, and the ingress ``http`` in front of them.

    Raises:
        ModelError: a model, version or alias is unknown.
        StokerError: no API key is configured, and ``authentication`` is not ``none``.
    """
    if settings.authentication == "keys":
        Keys.from_environment()
    deployed = settings.deployed()
    replicas = serve.deployment(Replica)
    models = {
        model.name: replicas.options(name=model.name, max_ongoing_requests=64, **_BOUNDED).bind(
            model.version, settings.storage, settings.batching
        )
        for model in deployed
    }
    front = serve.deployment(serve.ingress()(Http)).options(name=INGRESS, max_ongoing_requests=128, **_BOUNDED)
    return front.bind(settings.model_dump(), [model.model_dump() for model in deployed], **models)
