"""Which models the cluster serves now, by the word of Serve's controller; no replica is asked.

So health and the list of models never wait behind predictions. While the controller is away the last word counts.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .settings import PREFIX

if TYPE_CHECKING:
    from stoker.registry import ModelCard

__all__ = ["Directory", "ServedModel", "model_entry", "served_models"]

logger = logging.getLogger(__name__)

_EVERY_S = 1.0
_FIRST_S = 10.0


@dataclass(frozen=True)
class ServedModel:
    """A model that is deployed; ``is_ready``: a replica answers, busy or not, or the model is scaled to zero."""

    name: str
    reference: str
    version: str
    storage: str
    is_ready: bool


def served_models(details: dict[str, Any]) -> dict[str, ServedModel]:
    """The models in Serve's details of the cluster (``ray.serve.schema.ServeInstanceDetails``), by name."""
    found = {}
    for application in details.get("applications", {}).values():
        prefix = str(application.get("route_prefix") or "")
        arguments = (application.get("deployed_app_config") or {}).get("args") or {}
        if prefix.startswith(PREFIX) and "model" in arguments:
            name = prefix.removeprefix(PREFIX)
            found[name] = ServedModel(
                name,
                str(arguments["model"]),
                str(arguments.get("version", "")),
                str(arguments.get("storage", "")),
                _is_ready(application),
            )
    return dict(sorted(found.items()))


def _is_ready(application: dict[str, Any]) -> bool:
    deployments = (application.get("deployments") or {}).values()
    for deployment in deployments:
        replicas = deployment.get("replicas") or []
        is_asleep = deployment.get("target_num_replicas") == 0 and application.get("status") == "RUNNING"
        if not is_asleep and not any(replica.get("state") == "RUNNING" for replica in replicas):
            return False
    return bool(deployments)


def model_entry(name: str, given: str, reference: str, card: ModelCard, classes: tuple[str, ...]) -> dict[str, Any]:
    """The entry of a model in ``/v1/models``: ``given`` is what was deployed, ``reference`` the version behind it."""
    return {
        "name": name,
        "reference": given,
        "model": reference,
        "architecture": card.architecture,
        "classes": list(classes),
        "image_size": card.preprocessing.image_size,
        "accuracy": card.metrics.accuracy if card.metrics else None,
        "published": card.published,
    }


class Directory:
    """The models that are served, asked for once a second; :meth:`entry` adds what the registry says of each."""

    def __init__(self) -> None:
        self._models: dict[str, ServedModel] | None = None
        self._entries: dict[tuple[str, str, str], dict[str, Any]] = {}
        self._task: asyncio.Task[None] | None = None
        self._first = asyncio.Event()

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._ask_on())

    async def models(self) -> dict[str, ServedModel]:
        """The models by name.

        Raises:
            TimeoutError: the controller has not answered yet.
        """
        if self._models is None:
            async with asyncio.timeout(_FIRST_S):
                await self._first.wait()
        return self._models or {}

    async def entry(self, model: ServedModel) -> dict[str, Any]:
        """The entry of ``model`` in ``/v1/models``.

        Raises:
            StokerError: the registry cannot be read.
        """
        key = (model.storage, model.reference, model.version)
        if key not in self._entries:
            loop = asyncio.get_running_loop()
            self._entries[key] = await loop.run_in_executor(None, _read_entry, model)
        return self._entries[key]

    async def _ask_on(self) -> None:
        was_away = False
        while True:
            try:
                details = await asyncio.get_running_loop().run_in_executor(None, _details)
                self._models = served_models(details)
                self._first.set()
                was_away = False
            except Exception as error:
                if not was_away:
                    logger.warning(
                        "Serve's controller does not answer (%s); its last word counts", type(error).__name__
                    )
                was_away = True
            await asyncio.sleep(_EVERY_S)


def _details() -> dict[str, Any]:
    from ray.serve.context import _get_global_client

    client = _get_global_client()
    assert client is not None
    details: dict[str, Any] = client.get_serve_details()
    return details


def _read_entry(model: ServedModel) -> dict[str, Any]:
    from stoker.registry import Registry
    from stoker.storage import locate

    version = Registry(locate(model.storage, timeout_s=10)).resolve(model.version or model.reference)
    return model_entry(model.name, model.reference, version.reference, version.card, version.classes)
