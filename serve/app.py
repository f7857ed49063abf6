"""Build the Serve applications that serve/digits.yaml names: one for each model, and the front.

``import_path: stoker_serve.app:model`` and ``stoker_serve.app:front``. Serve reads the builders' annotations to check
``args``, so annotations are not postponed in this module.
"""

import os
from typing import Any

from fastapi import FastAPI
from ray import serve

from .directory import Directory
from .front import Front, make_front
from .hop import Forwarded
from .keys import Keys
from .replica import Replica
from .settings import FrontSettings, ModelSettings, least_ongoing, least_shutdown_s

__all__ = ["MODEL", "front", "model"]

MODEL = "model"
"""name of the one deployment of a model's application"""


class _FrontReplica:
    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = FrontSettings.model_validate(settings)

    async def __serve_build_asgi_app__(self) -> FastAPI:
        from .cluster_metrics import cluster_metrics

        keys = Keys.load(os.environ) if self._settings.authentication == "keys" else None
        if keys is not None:
            keys.watch()
        directory = Directory()
        directory.start()
        return make_front(self._settings, Front(directory, cluster_metrics, _hop), keys)


async def _hop(name: str, request: Forwarded) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    answer: tuple[int, list[tuple[bytes, bytes]], bytes] = await serve.get_app_handle(name).answer.remote(request)
    return answer


def model(settings: ModelSettings) -> serve.Application:
    """Build the application of one model.

    Raises:
        ModelError: the model, version or alias is unknown.
        StokerError: no API key is configured, and ``authentication`` is not ``none``.
    """
    if settings.authentication == "keys":
        Keys.load(os.environ)
    resolved = settings.resolved()
    deployment = serve.deployment(serve.ingress()(Replica)).options(
        name=MODEL,
        # The replica's own limits refuse, with an answer of ours; Serve's would come first otherwise.
        max_ongoing_requests=least_ongoing(settings.limits),
        max_queued_requests=-1,
        max_surge_percent=100,  # a new version's replicas start before those of the old one stop
        graceful_shutdown_timeout_s=least_shutdown_s(settings.limits),
        logging_config={"enable_access_log": False},  # the replica writes its own
        health_check_period_s=5,
        health_check_timeout_s=35,  # above the replica's own limit for its probe
    )
    return deployment.bind(resolved.model_dump())


def front(settings: FrontSettings) -> serve.Application:
    """Build the front's application.

    Raises:
        StokerError: no API key is configured, and ``authentication`` is not ``none``.
    """
    if settings.authentication == "keys":
        Keys.load(os.environ)
    deployment = serve.deployment(serve.ingress()(_FrontReplica)).options(name="front", max_ongoing_requests=256)
    return deployment.bind(settings.model_dump())
