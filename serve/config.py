"""Read and check a Serve YAML before anything is deployed."""

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
    """The config that is sent to the cluster, and what it deploys."""

    config: dict[str, Any]
    """a complete config by Serve's schema"""
    application: str
    deployed: list[Deployed]
    host: str
    port: int
    prefix: str

    @property
    def url(self) -> str:
        """The endpoint's URL, as seen from the head node."""
        host = "127.0.0.1" if self.host in {"0.0.0.0", "::", ""} else self.host  # noqa: S104 - compared, not bound
        return f"http://{host}:{self.port}{self.prefix.rstrip('/')}"


def read_plan(path: Path, *, storage: str | None = None, models: Sequence[str] = (), port: int | None = None) -> Plan:
    """Read the config in ``path``, apply the command line's options, and look every model up in the registry.

    Raises:
        ClusterError: the file cannot be read, or is not a valid Serve config with this application in it.
        ModelError: a model, version or alias is unknown.
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
    application["deployments"] = _deployments(application.get("deployments") or [], deployed)
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
        raise ClusterError(f"{path} is not valid YAML ({' '.join(str(error).split())}); fix it there") from None
    if not isinstance(config, dict):
        raise ClusterError(f"{path} is not a Serve config: no keys found; see serve/digits.yaml for an example")
    return config


def _ours(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    applications = config.get("applications")
    rows = [row for row in applications if isinstance(row, dict)] if isinstance(applications, list) else []
    ours = [row for row in rows if row.get("import_path") == IMPORT_PATH]
    if len(ours) != 1:
        raise ClusterError(
            f"{path}: applications: {len(ours)} have import_path {IMPORT_PATH}, expected 1; see serve/digits.yaml"
        )
    ours[0].setdefault("name", "stoker")
    if not isinstance(ours[0].get("args") or {}, dict) or not isinstance(ours[0].get("deployments") or [], list):
        raise ClusterError(f"{path}: args must be a mapping and deployments a list; see serve/digits.yaml")
    return ours[0]


def _deployments(entries: list[Any], deployed: list[Deployed]) -> list[dict[str, Any]]:
    """The deployments of the served models; a model without an entry in the YAML takes the first model's."""
    named = {str(entry.get("name")): entry for entry in entries if isinstance(entry, dict)}
    default = next((entry for name, entry in named.items() if name != INGRESS), None)
    found = [named[INGRESS]] if INGRESS in named else []
    for model in deployed:
        if entry := named.get(model.name, default):
            found.append({**entry, "name": model.name})
    return found


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
