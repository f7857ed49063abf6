"""A Serve YAML, read and checked before anything is deployed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from stoker.errors import ClusterError

from .settings import INGRESS, Deployed, Settings

__all__ = ["IMPORT_PATH", "Plan", "read_plan"]

IMPORT_PATH = "stoker_serve.app:build"


@dataclass(frozen=True)
class Plan:
    """What is sent to the cluster, and what is true when it runs."""

    config: dict[str, Any]
    """Serve's own schema, complete"""
    application: str
    deployed: list[Deployed]
    host: str
    port: int
    prefix: str

    @property
    def url(self) -> str:
        """Where it answers, as seen from the head node."""
        host = "127.0.0.1" if self.host in {"0.0.0.0", "::", ""} else self.host  # noqa: S104 - compared, not bound
        return f"http://{host}:{self.port}{self.prefix.rstrip('/')}"


def read_plan(path: Path, *, storage: str | None = None, models: Sequence[str] = (), port: int | None = None) -> Plan:
    """The config in ``path`` with what the command line says instead, every model looked up in the registry.

    Raises:
        ClusterError: no such file, no YAML, or not a Serve config with our application in it.
        ModelError: a model, version or alias is not in the registry.
        StorageError: the registry cannot be read.
    """
    config = _read(path)
    application = _ours(path, config)
    arguments = dict(application.get("args") or {})
    if storage:
        arguments["storage"] = storage
    if models:
        arguments["models"] = list(models)
    try:
        settings = Settings.model_validate(arguments)
    except ValidationError as error:
        raise ClusterError(_line(f"{path}: args", error)) from None
    deployed = settings.deployed()
    versions = {model.reference: model.version for model in deployed}
    application["args"] = settings.model_copy(update={"versions": versions}).model_dump(mode="json")
    application["deployments"] = _fitted(application.get("deployments") or [], deployed)
    options = dict(config.get("http_options") or {})
    config["http_options"] = options
    options["port"] = port or options.get("port", 8000)
    options["host"] = options.get("host", "127.0.0.1")
    _check_schema(path, config)
    prefix = str(application.get("route_prefix", "/"))
    return Plan(config, str(application["name"]), deployed, str(options["host"]), int(options["port"]), prefix)


def _read(path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ClusterError(f"cannot read {path} ({getattr(error, 'strerror', error)}); check the path") from None
    except yaml.YAMLError as error:
        raise ClusterError(f"{path} is no YAML ({' '.join(str(error).split())})") from None
    if not isinstance(config, dict):
        raise ClusterError(f"{path} is no Serve config: it holds no keys; serve/digits.yaml is one")
    return config


def _ours(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    applications = config.get("applications")
    rows = [row for row in applications if isinstance(row, dict)] if isinstance(applications, list) else []
    ours = [row for row in rows if row.get("import_path") == IMPORT_PATH]
    if len(ours) != 1:
        raise ClusterError(
            f"{path}: applications: {len(ours)} of them have import_path {IMPORT_PATH}; exactly one must"
        )
    ours[0].setdefault("name", "stoker")
    if not isinstance(ours[0].get("args") or {}, dict) or not isinstance(ours[0].get("deployments") or [], list):
        raise ClusterError(f"{path}: args must hold keys and deployments a list; see serve/digits.yaml")
    return ours[0]


def _fitted(entries: list[Any], deployed: list[Deployed]) -> list[dict[str, Any]]:
    """The YAML's deployments for the models that are there; a model without an entry takes that of the first."""
    named = {str(entry.get("name")): entry for entry in entries if isinstance(entry, dict)}
    pattern = next((entry for name, entry in named.items() if name != INGRESS), None)
    fitted = [named[INGRESS]] if INGRESS in named else []
    for model in deployed:
        if entry := named.get(model.name, pattern):
            fitted.append({**entry, "name": model.name})
    return fitted


def _check_schema(path: Path, config: dict[str, Any]) -> None:
    from ray.serve.schema import ServeDeploySchema

    try:
        ServeDeploySchema.model_validate(config)
    except ValidationError as error:
        raise ClusterError(_line(str(path), error)) from None


def _line(where: str, error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    return f"{where}: {key + ': ' if key else ''}{' '.join(message.split())}"
