"""Turn AWS's notice that a spot machine is taken back into a drain of its Ray node.

EC2 tells it to the machine alone, two minutes before, through the instance metadata service (Amazon EC2 User Guide,
"Spot Instance interruption notices"; the session token is that of IMDSv2). Nothing in Ray asks for it. A drained node
gets no new work, and the ranks of a run on it agree to store a checkpoint and to restart elsewhere.
"""

from __future__ import annotations

import http.client
import json
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from stoker.errors import ClusterError

__all__ = ["METADATA_URL", "MetadataService", "SpotNotice", "drain_this_node", "watch"]

METADATA_URL = "http://169.254.169.254"
_TOKEN_LIFE_S = 21_600
_TIMEOUT_S = 2.0
_MOST_BYTES = 4096
_LEAST_S = 10.0
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SpotNotice:
    """What EC2 is about to do with this machine: ``terminate``, ``stop`` or ``hibernate``, and when (seconds, Unix)."""

    action: str
    at: float


class MetadataService:
    """The instance metadata service at ``url``.

    Raises:
        ClusterError: it is not an HTTP address.
    """

    def __init__(self, url: str = METADATA_URL) -> None:
        if not url.startswith(("http://", "https://")):
            raise ClusterError(f"AWS_EC2_METADATA_SERVICE_ENDPOINT is {url!r}; write it as {METADATA_URL}, or unset it")
        self._url = url.rstrip("/")
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self._token, self._token_until = "", 0.0

    def notice(self) -> SpotNotice | None:
        """The notice, or None while there is none.

        Raises:
            ClusterError: the service does not answer, or not as it is documented.
        """
        try:
            if time.monotonic() > self._token_until:
                asked = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_LIFE_S)}
                self._token = self._ask("PUT", "/latest/api/token", asked).strip()
                self._token_until = time.monotonic() + _TOKEN_LIFE_S / 2
            told = json.loads(
                self._ask("GET", "/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": self._token})
            )
            return SpotNotice(str(told["action"]), datetime.fromisoformat(told["time"]).timestamp())
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            self._token_until = 0.0  # it may have been the token
            raise ClusterError(f"the metadata service at {self._url} answers {error.code}") from None
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
            raise ClusterError(f"the metadata service at {self._url} cannot be read ({error})") from None

    def _ask(self, method: str, path: str, headers: dict[str, str]) -> str:
        request = urllib.request.Request(self._url + path, headers=headers, method=method)  # noqa: S310 (checked above)
        with self._opener.open(request, timeout=_TIMEOUT_S) as answer:
            text: bytes = answer.read(_MOST_BYTES)
        return text.decode("ascii")


def watch(service: MetadataService, drain: Callable[[SpotNotice], None], *, every_s: float) -> SpotNotice:
    """Ask ``service`` every ``every_s`` seconds; at its notice call ``drain``, again until it succeeds, and return it.

    A service that does not answer is warned about once, and asked on.
    """
    was_warned = False
    while True:
        try:
            if notice := service.notice():
                drain(notice)
                return notice
            was_warned = False
        except ClusterError as error:
            logger.log(logging.DEBUG if was_warned else logging.WARNING, "%s; asking on", error)
            was_warned = True
        time.sleep(every_s)


def drain_this_node(notice: SpotNotice) -> None:
    """Tell Ray's head that the node at this machine's address goes at the time of ``notice``.

    Raises:
        ClusterError: Ray does not run here, or refuses.
    """
    import ray
    from ray.core.generated import autoscaler_pb2

    try:
        if not ray.is_initialized():
            ray.init(address="auto", log_to_driver=False, configure_logging=False)
        here = ray.util.get_node_ip_address()
        reason = autoscaler_pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION
        client = ray._raylet.GcsClient(address=ray.get_runtime_context().gcs_address)
        nodes = [node for node in ray.nodes() if node["Alive"] and node["NodeManagerAddress"] == here]
        workers = [node["NodeID"] for node in nodes if "node:__internal_head__" not in node["Resources"]]
        if not workers:
            raise ClusterError(f"Ray has no worker node at {here}")
        deadline_s = max(notice.at, time.time() + _LEAST_S)  # Ray ignores a drain whose deadline has passed
        for node in workers:
            text = f"EC2 takes this spot machine back ({notice.action})"
            is_accepted, why = client.drain_node(node, reason, text, int(deadline_s * 1000))
            if not is_accepted:
                raise ClusterError(f"Ray does not drain node {here} ({why})")
    except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
        raise ClusterError(f"Ray cannot be told to drain this node ({error})") from None
