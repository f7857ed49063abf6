"""The head of a Ray cluster on this machine: token authentication on, every socket of Ray's own on loopback.

``ray start`` replaces 127.0.0.1 by the machine's address on the network, and then binds to all interfaces; only with
``RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0``, its switch for machines without clusters, does it stay on loopback
(measured with ``ss -ltnp``). The switch is therefore set for clients too. Two sockets of Ray's libraries have no
switch: torch's rendezvous store while a run trains, and the port by which Serve replicas talk (it asks for the token).
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stoker.embedded.ports import choose_port, free_ports, is_free
from stoker.embedded.processes import ExitedByItself, Part, Started, program, wait_until
from stoker.embedded.serving import serve_environment
from stoker.embedded.settings import Settings
from stoker.embedded.state import StateFolder
from stoker.errors import ClusterError

__all__ = ["RayCluster"]

logger = logging.getLogger(__name__)

_HIDDEN_PORTS = ("client", "runtime-env-agent", "dashboard-metrics", "autoscaler-metrics")
_START_TIMEOUT_S = 180.0
_HOLD_S = 2.5  # `ray start --block` looks for dead processes once a second, and then kills all others
_STOP_TIMEOUT_S = 30.0
_SERVE_TIMEOUT_S = 60.0  # the first question about Serve makes the dashboard a driver of the cluster
_STARTS = 3
_NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class RayCluster:
    """One head node; its methods are for one thread, but several processes may use the same folder."""

    def __init__(self, folder: StateFolder, settings: Settings | None = None) -> None:
        self.folder = folder
        self.settings = settings or Settings.model_validate({})
        self._part = Part(folder.instance, "cluster")

    @property
    def dashboard_url(self) -> str:
        """Ray's dashboard and job API, as ``http://127.0.0.1:8265``.

        Raises:
            ClusterError: the cluster was not started.
        """
        return f"http://127.0.0.1:{self._port('dashboard')}"

    @property
    def serve_port(self) -> int:
        """The port reserved for Ray Serve's HTTP proxy (``http_options.port``); its host must be 127.0.0.1.

        Raises:
            ClusterError: the cluster was not started.
        """
        return self._port("serve")

    @property
    def serve_url(self) -> str:
        """Where the HTTP endpoint answers once it is deployed."""
        return f"http://127.0.0.1:{self.serve_port}"

    def environment(self) -> dict[str, str]:
        """What ``ray job submit``, ``serve deploy``, ``ray status`` and ``ray.init()`` need to find the cluster."""
        return {
            "RAY_ADDRESS": f"127.0.0.1:{self._port('gcs')}",
            "RAY_API_SERVER_ADDRESS": self.dashboard_url,
            "RAY_DASHBOARD_ADDRESS": self.dashboard_url,
            **self._common(),
        }

    def is_healthy(self) -> bool:
        """Whether the job API answers to our token and a node is alive."""
        if "dashboard" not in self._ports():
            return False
        try:
            self._ask("/api/jobs/")
            nodes = self._ask("/nodes?view=summary")["data"]["summary"]
            return any(node["raylet"]["state"] == "ALIVE" for node in nodes)
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def applications(self) -> list[str]:
        """Names of the Serve applications, in whatever state they are; empty while Serve does not run.

        Raises:
            ClusterError: the cluster was not started, or does not tell.
        """
        url = self.dashboard_url
        try:
            return sorted(self._ask("/api/serve/applications/", timeout_s=_SERVE_TIMEOUT_S)["applications"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ClusterError(
                f"{url} does not tell what Serve runs ({error}); the log is {self.folder.logs / 'ray.log'}"
            ) from None

    def start(self, environment: Mapping[str, str]) -> None:
        """Start the cluster if it is not healthy, after stopping what is left of it. The caller holds the lock.

        ``environment`` is passed to all workers: the store's address and credentials.

        Raises:
            ClusterError: it cannot be started; the message names the log.
        """
        if self.is_healthy():
            logger.info("the Ray cluster is running already at %s", self.dashboard_url)
            return
        self.stop()
        self.folder.prepare()
        self.folder.ray_token()
        for attempt in range(1, _STARTS + 1):
            try:
                self._start_once(environment)
                return
            except ClusterError as error:
                taken = [port for port in self._ports().values() if not is_free(port)]
                self.stop()
                is_taken = any(not is_free(port) for port in taken)
                may_repeat = attempt == 1 and isinstance(error, ExitedByItself)
                if attempt == _STARTS or not (is_taken or may_repeat):
                    raise
                reason = "a port was taken meanwhile" if is_taken else "it did not stay up"
                logger.info("%s (%s); trying again", reason, error)

    def stop(self) -> int:
        """Stop the cluster with all its jobs and endpoints; returns how many processes were stopped."""
        ports = self._ports()
        count = self._part.end(timeout_s=_STOP_TIMEOUT_S)
        deadline = time.monotonic() + 20.0
        while count and time.monotonic() < deadline and not all(is_free(port) for port in ports.values()):
            time.sleep(0.1)
        self.folder.remove_temporary("h")
        self.folder.remove_temporary("r")
        self.folder.remove_temporary("t")
        self.folder.record("cluster", None)
        return count

    # -- inside ----------------------------------------------------------------------------------------------------

    def _start_once(self, environment: Mapping[str, str]) -> None:
        wanted = self.settings.ports
        ports = {name: choose_port(name, getattr(wanted, name)) for name in ("gcs", "dashboard", "serve")}
        ports |= dict(zip(_HIDDEN_PORTS, free_ports(len(_HIDDEN_PORTS)), strict=True))
        log = self.folder.logs / "ray.log"
        logger.info("starting a Ray cluster, dashboard on 127.0.0.1:%d (log: %s)", ports["dashboard"], log)
        began = time.monotonic()
        self.folder.record("cluster", {"ports": ports})
        process = self._part.start(
            [program("ray"), *self._arguments(ports)],
            environment=self._head_environment(ports, environment),
            folder=self.folder.path,
            log=log,
        )
        self.folder.record("cluster", {"ports": ports, **process.note()})
        wait_until(
            self.is_healthy, "the Ray cluster", timeout_s=_START_TIMEOUT_S, hold_s=_HOLD_S, process=process, log=log
        )
        logger.info("the Ray cluster is ready after %.1f s at %s", time.monotonic() - began, self.dashboard_url)

    def _arguments(self, ports: Mapping[str, int]) -> list[str]:
        memory = self.settings.object_store_memory_mb * 1_000_000
        options = {
            "node-ip-address": "127.0.0.1",
            "port": ports["gcs"],
            "dashboard-host": "127.0.0.1",
            "dashboard-port": ports["dashboard"],
            "dashboard-agent-listen-port": 0,
            # Ray's client server, which cannot be left out, asks the raylet for this port unless it is given: if the
            # raylet has not registered within 30 s, it exits, and the cluster with it.
            "runtime-env-agent-port": ports["runtime-env-agent"],
            "ray-client-server-port": ports["client"],
            "min-worker-port": 0,
            "max-worker-port": 0,
            "temp-dir": self.folder.temporary("r"),
            "num-cpus": self.settings.ray_cpus,
            "object-store-memory": memory,
        }
        return [
            *("start", "--head", "--block", "--disable-usage-stats", "--log-color=false"),
            *(f"--{name}={value}" for name, value in options.items()),
        ]

    def _head_environment(self, ports: Mapping[str, int], environment: Mapping[str, str]) -> dict[str, str]:
        others = ("RAY_", "AWS_", "STOKER_API_KEY")  # a shell's key, which may be of another endpoint, opens none here
        ours = {name: value for name, value in os.environ.items() if not name.startswith(others)}
        programs = str(Path(sys.executable).parent)
        return {
            **ours,
            "PATH": os.pathsep.join([programs, *([ours["PATH"]] if ours.get("PATH") else [])]),
            "GLOO_SOCKET_IFNAME": "lo",
            "NCCL_SOCKET_IFNAME": "lo",
            "TMPDIR": str(self.folder.temporary("t")),  # goes with the cluster, also when its workers are killed
            "RAY_SERVE_DEFAULT_HTTP_HOST": "127.0.0.1",
            **serve_environment(self.folder.temporary("h")),
            # Nothing to drain to: without this SIGTERM waits half a minute.
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
            "DASHBOARD_METRIC_PORT": str(ports["dashboard-metrics"]),
            "AUTOSCALER_METRIC_PORT": str(ports["autoscaler-metrics"]),
            **self.settings.environment,
            **environment,
            **self._common(),
        }

    def _common(self) -> dict[str, str]:
        return {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.folder.token_path),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
        }

    def _ask(self, path: str, timeout_s: float = 10.0) -> Any:
        headers = {"Authorization": f"Bearer {self.folder.ray_token()}"}
        request = urllib.request.Request(f"{self.dashboard_url}{path}", headers=headers)  # noqa: S310 - http, loopback
        with _NO_PROXY.open(request, timeout=timeout_s) as answer:
            return json.load(answer)

    def _port(self, name: str) -> int:
        port = self._ports().get(name)
        if port is None:
            raise ClusterError(f"no Ray cluster runs in {self.folder.path}; start it with: stoker up")
        return port

    def _ports(self) -> dict[str, int]:
        recorded = self.folder.read().get("cluster")
        ports = recorded.get("ports") if isinstance(recorded, dict) else None
        return ports if isinstance(ports, dict) and all(isinstance(p, int) for p in ports.values()) else {}

    def process(self) -> Started | None:
        """The head's process as recorded, which may have ended since."""
        return Started.of(self.folder.read().get("cluster"))
