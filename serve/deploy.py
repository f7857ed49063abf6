"""Deploy a Serve config and wait until it answers: stoker deploy serve/digits.yaml

The file and every model that it names are checked before anything is deployed. Deploying again after an alias has
moved replaces the replicas by those of the new version, one after another. The cluster is the one whose dashboard
RAY_DASHBOARD_ADDRESS names (default http://127.0.0.1:8265). Closes with a line of JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import re
import socket
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stoker.command import Parser, positive, run_command
from stoker.dashboard import checked_address, ray_token
from stoker.errors import ClusterError

from .config import Plan, read_names, read_plan
from .settings import FRONT

if TYPE_CHECKING:
    from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

__all__ = ["add_arguments", "deploy", "remove", "run"]

logger = logging.getLogger(__name__)

_POLL_INTERVAL_S = 0.3
_LOG_INTERVAL_S = 10.0
_FREED_S = 5.0
_SENDS = 3
_FRONT_S = 10.0
_LOOPBACK = ("127.0.0.1", "localhost")
_NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def deploy(plan: Plan, address: str, *, timeout_s: float = 300.0) -> None:
    """Deploy ``plan`` to the cluster whose dashboard is at ``address``; returns when it serves the planned versions.

    Other applications of the cluster stay as they are.

    Raises:
        ClusterError: no cluster answers, the port is in use, an application fails, or ``timeout_s`` has passed.
    """
    with _one_line_errors(address):
        client = _client(address)
        details = client.get_serve_details()
        _check_port(plan, details, address)
        for _ in range(_SENDS):
            client.deploy_applications(_merged(plan, details))
            details = client.get_serve_details()
            if set(plan.names) <= set(details["applications"]):
                break  # else somebody who deployed at the same moment has replaced ours
    deadline = time.monotonic() + timeout_s
    log_at = time.monotonic() + _LOG_INTERVAL_S
    while True:
        with _one_line_errors(address):
            applications = client.get_serve_details()["applications"]
        failed = [name for name in plan.names if _status(applications, name) == "DEPLOY_FAILED"]
        if failed:
            raise ClusterError(f"{failed[0]} cannot be deployed: {_reason(applications[failed[0]])}; see serve status")
        waiting = [name for name in plan.names if _status(applications, name) != "RUNNING"]
        away = None if waiting else _away(plan, address)
        if not waiting and away is None:
            if _is_here(address):
                _wait_for_front(plan)
            return
        if time.monotonic() > deadline:
            name = waiting[0] if waiting else str(away)
            state = _status(applications, name).lower().replace("_", " ")
            raise ClusterError(
                f"{name} does not answer at {plan.url} after {timeout_s:g} s (it is {state}: "
                f"{_reason(applications.get(name) or {})}); see serve status, and ray status for free CPUs"
            )
        if time.monotonic() > log_at:
            log_at += _LOG_INTERVAL_S
            logger.info("still waiting for %s", ", ".join(waiting) or away)
        time.sleep(_POLL_INTERVAL_S)


def remove(address: str, names: Sequence[str] | None = None, *, timeout_s: float = 120.0) -> None:
    """Remove the applications ``names`` from the cluster; None: shut Serve down with all its applications.

    Raises:
        ClusterError: no cluster answers, or they did not end in time.
    """
    with _one_line_errors(address):
        client = _client(address)
        details = client.get_serve_details()
        kept = {} if names is None else {n: row for n, row in details["applications"].items() if n not in names}
        if any(name != FRONT for name in kept):
            client.deploy_applications({**_options(details), "applications": [_deployed(row) for row in kept.values()]})
        else:  # the front alone serves nothing
            kept = {}
            client.delete_applications()
        deadline = time.monotonic() + timeout_s
        while set(client.get_serve_details()["applications"]) - set(kept):
            if time.monotonic() > deadline:
                raise ClusterError(f"Serve on {address} has not shut down after {timeout_s:g} s; see serve status")
            time.sleep(_POLL_INTERVAL_S)


def _merged(plan: Plan, details: dict[str, Any]) -> dict[str, Any]:
    """The config to send: Serve replaces all applications by those of a config, so the others are sent again."""
    running = details.get("applications") or {}
    sent = [row for row in plan.applications if plan.has_front or row["name"] != FRONT or FRONT not in running]
    names = {row["name"] for row in sent}
    others = [_deployed(row) for name, row in running.items() if name not in names]
    ours = [_attempt(application, running.get(str(application["name"]))) for application in sent]
    options = _options(details) or {"http_options": plan.http_options, "proxy_location": plan.proxy_location}
    return {**options, "applications": [*others, *ours]}


def _options(details: dict[str, Any]) -> dict[str, Any]:
    """The options of a Serve that runs, which it keeps."""
    found = {key: details[key] for key in ("http_options", "proxy_location") if details.get(key)}
    return found if "http_options" in found else {}


def _deployed(application: dict[str, Any]) -> dict[str, Any]:
    config = application.get("deployed_app_config")
    if not config:
        raise ClusterError(
            f"application {application.get('name')!r} was not deployed by a config, and deploying another would remove "
            "it; remove it first, or deploy it by a config"
        )
    return dict(config)


def _attempt(application: dict[str, Any], running: dict[str, Any] | None) -> dict[str, Any]:
    """``application`` with the number of its attempt: Serve ignores a config that it has seen, also if it failed."""
    before = (running or {}).get("deployed_app_config") or {}
    if "attempt" not in (application.get("args") or {}) or "attempt" not in (before.get("args") or {}):
        return application
    number = int(before["args"]["attempt"])
    if (running or {}).get("status") in {"DEPLOY_FAILED", "UNHEALTHY"}:
        number += 1
    return {**application, "args": {**application["args"], "attempt": number}}


def _status(applications: dict[str, Any], name: str) -> str:
    return str((applications.get(name) or {}).get("status", "NOT_STARTED"))


def _away(plan: Plan, address: str) -> str | None:
    """The name of a model that does not answer by HTTP with the planned version; None: all do, or cannot be asked.

    From a laptop only the dashboard may be reachable, by ``ray dashboard``, and what listens there on the endpoint's
    port is something else. Serve's own word must do then.
    """
    if not _is_here(address):
        return None
    for model in plan.models:
        try:
            with _NO_PROXY.open(f"{plan.url}{model.route_prefix}/readyz", timeout=15) as answer:
                if json.load(answer)["model"] != model.version:
                    return model.name
        except (OSError, ValueError, KeyError):
            return model.name
    return None


def _wait_for_front(plan: Plan) -> None:
    """Wait a little until the front says that all is ready: it asks once a second. Other models may keep it waiting."""
    deadline = time.monotonic() + _FRONT_S
    while time.monotonic() < deadline:
        try:
            with _NO_PROXY.open(f"{plan.url}/readyz", timeout=5) as answer:
                if {model.version for model in plan.models} <= set(json.load(answer)["models"]):
                    return
        except (OSError, ValueError, KeyError):
            pass
        time.sleep(_POLL_INTERVAL_S)


def _is_here(address: str) -> bool:
    """Whether the cluster is this machine's own: a dashboard on loopback may be forwarded from anywhere."""
    is_local = os.environ.get("RAY_ADDRESS", "").partition(":")[0] in _LOOPBACK
    return is_local and address.rstrip("/") == _address().rstrip("/")


def _client(address: str) -> ServeSubmissionClient:
    from ray.dashboard.modules.serve.sdk import ServeSubmissionClient  # sends the cluster's token by itself

    if (token := ray_token(os.environ)) and os.environ.get("RAY_AUTH_TOKEN"):
        os.environ["RAY_AUTH_TOKEN"] = token  # the client would quote one with a line break in its error
    try:
        return ServeSubmissionClient(checked_address(address))
    except (LookupError, TypeError):  # of the version that it asks for
        raise ClusterError(
            f"no Ray cluster answers at {address} (what answers there is not Ray's dashboard); start one (stoker up), "
            "or set RAY_DASHBOARD_ADDRESS"
        ) from None


@contextlib.contextmanager
def _one_line_errors(address: str) -> Iterator[None]:
    """Turn the client's errors into :class:`ClusterError` of one line."""
    from ray.exceptions import RayError

    try:
        yield
    except (OSError, RuntimeError, ValueError, RayError) as error:
        text = str(error).strip()
        if isinstance(error, OSError) and "onnect" in text:
            raise ClusterError(
                f"no Ray cluster answers at {address}; start one (stoker up), or set RAY_DASHBOARD_ADDRESS"
            ) from None
        if "uthenticat" in text:
            raise ClusterError(
                f"the Ray cluster at {address} does not accept our token; set RAY_AUTH_MODE=token and "
                "RAY_AUTH_TOKEN_PATH to the cluster's token file"
            ) from None
        raise ClusterError(
            f"the Ray cluster at {address} refused the request: {_last_line(text)}; see serve status"
        ) from None


def _check_port(plan: Plan, details: dict[str, Any], address: str) -> None:
    """Serve binds its port once, when it starts; a port in use would make it fail late and with an obscure message."""
    running = details.get("http_options")
    if running:
        if running["port"] != plan.port:
            raise ClusterError(
                f"Serve is already running and listens on port {running['port']}, not {plan.port}; give --port "
                f"{running['port']}, or shut it down first with --delete"
            )
        if running["host"] != plan.host:
            raise ClusterError(
                f"Serve is already running and listens on host {running['host']}, not {plan.host}; write that in the "
                "YAML, or shut it down first with --delete"
            )
        return
    if plan.host not in _LOOPBACK or not _is_here(address):
        return
    deadline = time.monotonic() + _FREED_S
    while not _is_free(plan.host, plan.port):
        if time.monotonic() > deadline:
            raise ClusterError(f"port {plan.port} is in use by another program; choose another with --port N")
        time.sleep(_POLL_INTERVAL_S)  # a Serve that was shut down a moment ago lets go of it


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def _reason(application: dict[str, Any]) -> str:
    """The line of Serve's messages, tracebacks included, that gives the reason."""
    rows = application.get("deployments") or {}
    messages = [str(row.get("message") or "") for row in rows.values()] + [str(application.get("message") or "")]
    lines = [line.strip() for message in messages for line in message.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]+(Error|Exception|Warning)\b.*:", line)]
    return _last_line("\n".join(errors or lines)) or "no reason given yet"


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if any(letter.isalnum() for letter in line)]
    return lines[-1][:500] if lines else ""


def _address() -> str:
    named = os.environ.get("RAY_DASHBOARD_ADDRESS") or os.environ.get("RAY_API_SERVER_ADDRESS")
    return named or "http://127.0.0.1:8265"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``stoker deploy``."""
    parser.add_argument("config", metavar="CONFIG", type=Path, nargs="?", help="a Serve YAML")
    parser.add_argument("--storage", help="URL below which models/ is (default: the YAML's, or STOKER_STORAGE)")
    parser.add_argument("--model", action="append", default=[], metavar="REF", help="instead of the YAML's; repeatable")
    parser.add_argument("--port", type=int, help="instead of the YAML's")
    parser.add_argument("--address", default=_address(), help="the cluster's dashboard")
    parser.add_argument("--timeout", type=positive, default=300.0, metavar="S", help="seconds to wait (default: 300)")
    parser.add_argument(
        "--delete", action="store_true", help="remove the YAML's applications; without a YAML: shut down Serve"
    )


def run(given: argparse.Namespace) -> None:
    """Do what the arguments of ``stoker deploy`` ask for.

    Raises:
        ClusterError, ModelError, StorageError: see :func:`deploy`, :func:`remove` and ``config.read_plan``.
    """
    address = checked_address(given.address)
    if given.delete and given.config is None:
        remove(address)
        _say(f"Serve on {address} has shut down")
        return
    if given.config is None:
        raise ClusterError("no application given; give a Serve YAML, as in: stoker deploy serve/digits.yaml")
    if given.delete:
        names = read_names(given.config, models=given.model)
        remove(address, names)
        _say(f"removed {', '.join(names)} from {address}")
        return
    plan = read_plan(given.config, storage=given.storage, models=given.model, port=given.port)
    versions = [model.version for model in plan.models]
    _say(f"deploying {', '.join(versions)} to {address}")
    deploy(plan, address, timeout_s=given.timeout)
    _say(f"serving {', '.join(versions)} at {plan.url}")
    _say(json.dumps({"url": plan.url, "models": versions}))


def main(arguments: list[str]) -> None:
    parser = Parser(
        prog="python -m stoker_serve.deploy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    run(parser.parse_args(arguments))


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    run_command(main)
