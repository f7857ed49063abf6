"""Read and check a Serve YAML before anything is deployed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from stoker.errors import ClusterError

from .settings import FRONT, FrontSettings, ModelSettings, least_ongoing, least_shutdown_s

__all__ = ["FRONT_PATH", "MODEL_PATH", "Plan", "read_names", "read_plan"]

MODEL_PATH = "stoker_serve.app:model"
FRONT_PATH = "stoker_serve.app:front"
_Args = TypeVar("_Args", bound=BaseModel)


_DEPLOYS_OWN = {"version": "", "attempt": 0}
"""what a YAML cannot say: a config that was read from a cluster would pin them"""


@dataclass(frozen=True)
class Plan:
    """The applications that are sent to the cluster, and what they serve."""

    applications: list[dict[str, Any]]
    """each complete by Serve's schema; the front, the models, and what else the YAML has"""
    models: list[ModelSettings]
    http_options: dict[str, Any]
    proxy_location: str
    has_front: bool
    """whether the YAML has one; without it a front that runs stays as it is"""

    @property
    def names(self) -> list[str]:
        """The applications' names."""
        return [str(application["name"]) for application in self.applications]

    @property
    def host(self) -> str:
        return str(self.http_options["host"])

    @property
    def port(self) -> int:
        return int(self.http_options["port"])

    @property
    def url(self) -> str:
        """The endpoint's URL, as seen from the head node."""
        host = "127.0.0.1" if self.host in {"0.0.0.0", "::", ""} else self.host  # noqa: S104 - compared, not bound
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"


def read_plan(path: Path, *, storage: str | None = None, models: Sequence[str] = (), port: int | None = None) -> Plan:
    """Read the config in ``path``, apply the command line's options, and look every model up in the registry.

    Each of ``models`` gets an application like that of its name in the file, or like the file's first.

    Raises:
        ClusterError: the file cannot be read, is not a valid Serve config, or has no model's application in it.
        ModelError: a model, version or alias is unknown.
        StorageError: the registry cannot be read.
    """
    config = _read(path)
    ours, others = _applications(path, config)
    planned = [(application, _settings(path, application, storage)) for application in _wanted(path, ours, models)]
    names = [settings.name for _, settings in planned]
    for name in names:
        if names.count(name) > 1:
            raise ClusterError(f"{path}: model {name!r} has two applications; keep one of them")
    resolved = [(application, settings.resolved()) for application, settings in planned]
    applications = [_front(path, ours[FRONT_PATH], resolved[0][1]), *others]
    applications += [_model(path, application, settings) for application, settings in resolved]
    options = config.get("http_options") or {}
    if not isinstance(options, dict):
        raise ClusterError(f"{path}: http_options must be a mapping; see serve/digits.yaml")
    options = dict(options)
    options["port"] = port or options.get("port", 8000)
    options["host"] = options.get("host", "127.0.0.1")
    location = str(config.get("proxy_location", "HeadOnly"))
    _check_schema(path, {"applications": applications, "http_options": options, "proxy_location": location})
    models_ = [settings for _, settings in resolved]
    return Plan(applications, models_, options, location, has_front=bool(ours[FRONT_PATH]))


def read_names(path: Path, *, models: Sequence[str] = ()) -> list[str]:
    """The names of the models' applications that :func:`read_plan` plans; the registry is not asked.

    Raises:
        ClusterError: the file cannot be read, or has no model's application in it.
    """
    ours, _ = _applications(path, _read(path))
    wanted = _wanted(path, ours, models)
    return [str((row.get("args") or {}).get("model", "")).partition("@")[0] for row in wanted]


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


def _applications(path: Path, config: dict[str, Any]) -> tuple[dict[str, list[dict[str, Any]]], list[dict[str, Any]]]:
    """(ours by their import path, the others)."""
    found = config.get("applications")
    rows = [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []
    ours: dict[str, list[dict[str, Any]]] = {MODEL_PATH: [], FRONT_PATH: []}
    others: list[dict[str, Any]] = []
    for row in rows:
        ours.get(str(row.get("import_path")), others).append(row)
        if not isinstance(row.get("args") or {}, dict) or not isinstance(row.get("deployments") or [], list):
            raise ClusterError(f"{path}: args must be a mapping and deployments a list; see serve/digits.yaml")
    if not ours[MODEL_PATH]:
        raise ClusterError(
            f"{path}: applications: none has import_path {MODEL_PATH}, so no model is served; see serve/digits.yaml"
        )
    if len(ours[FRONT_PATH]) > 1:
        raise ClusterError(f"{path}: applications: {FRONT_PATH} is there twice; keep one of them")
    return ours, others


def _wanted(path: Path, ours: dict[str, list[dict[str, Any]]], models: Sequence[str]) -> list[dict[str, Any]]:
    """The models' applications, or instead of them one for each reference in ``models``."""
    given = ours[MODEL_PATH]
    if not models:
        return given
    by_name = {str((row.get("args") or {}).get("model", "")).partition("@")[0]: row for row in given}
    wanted = []
    for reference in models:
        template = by_name.get(reference.partition("@")[0], given[0])
        arguments = {**(template.get("args") or {}), "model": reference}
        wanted.append({key: value for key, value in template.items() if key not in {"name", "route_prefix"}})
        wanted[-1]["args"] = arguments
    return wanted


def _settings(path: Path, application: dict[str, Any], storage: str | None) -> ModelSettings:
    arguments = {**(application.get("args") or {}), **_DEPLOYS_OWN}
    if storage:
        arguments["storage"] = storage
    return _validated(path, ModelSettings, arguments)


def _model(path: Path, application: dict[str, Any], settings: ModelSettings) -> dict[str, Any]:
    told = {"name": settings.name, "route_prefix": settings.route_prefix}
    for key, expected in told.items():
        if application.get(key, expected) != expected:
            raise ClusterError(
                f"{path}: {key} of {settings.model} is {application[key]!r}; leave it out, or write {expected!r}"
            )
    for deployment in application.get("deployments") or []:
        _check_limits(path, deployment, settings)
    return {**application, **told, "args": settings.model_dump(mode="json")}


def _check_limits(path: Path, deployment: Any, settings: ModelSettings) -> None:
    """Refuse bounds of Serve's that would hide the replica's own."""
    where = f"{path}: deployments of {settings.name}"
    if not isinstance(deployment, dict) or deployment.get("name") != "model":
        raise ClusterError(f"{where}: a model's application has one deployment, named model; see serve/digits.yaml")
    ongoing, least = deployment.get("max_ongoing_requests"), least_ongoing(settings.limits)
    if isinstance(ongoing, int) and ongoing < least:
        raise ClusterError(
            f"{where}: max_ongoing_requests is {ongoing}, so requests would wait in Serve and never be told that the "
            f"replica is busy; leave it out, or write at least {least} (4 times limits.queue_images)"
        )
    if deployment.get("max_queued_requests", -1) != -1:
        raise ClusterError(
            f"{where}: max_queued_requests refuses before the replica can; leave it out and set limits.queue_images"
        )
    grace, least_s = deployment.get("graceful_shutdown_timeout_s"), least_shutdown_s(settings.limits)
    if isinstance(grace, int | float) and grace < least_s:
        raise ClusterError(
            f"{where}: graceful_shutdown_timeout_s is {grace:g}, so accepted requests would be cut off; leave it out, "
            f"or write at least {least_s:g}"
        )


def _front(path: Path, given: list[dict[str, Any]], like: ModelSettings) -> dict[str, Any]:
    """The front's application: the file's, else one as open and with the storage of the first model's."""
    default: dict[str, Any] = {"storage": like.storage, "authentication": like.authentication, "origins": like.origins}
    application: dict[str, Any] = given[0] if given else {"import_path": FRONT_PATH}
    arguments = {**default, **(application.get("args") or {})}
    settings = _validated(path, FrontSettings, arguments)
    told: dict[str, Any] = {"name": FRONT, "route_prefix": "/"}
    return {**application, **told, "args": settings.model_dump(mode="json")}


def _validated(path: Path, kind: type[_Args], arguments: dict[str, Any]) -> _Args:
    try:
        return kind.model_validate(arguments)
    except ValidationError as error:
        raise ClusterError(_line(f"{path}: args", error)) from None


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
