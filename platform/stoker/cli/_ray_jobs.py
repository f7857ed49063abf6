"""The job API of a Ray cluster over plain HTTP: is it there, what became of a job (Ray's REST API, /api/jobs/)."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stoker.dashboard import checked_address, ray_token
from stoker.errors import ClusterError

__all__ = ["JobStatus", "Jobs"]

_LOOPBACK = {"127.0.0.1", "localhost", "::1"}
_TIMEOUT_S = 10.0
_FINISHED = {"SUCCEEDED", "FAILED", "STOPPED"}


@dataclass(frozen=True)
class JobStatus:
    """``state`` as Ray names it: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""

    state: str
    driver_exit_code: int | None

    @property
    def is_finished(self) -> bool:
        return self.state in _FINISHED

    @property
    def exit_code(self) -> int:
        """0 if the job succeeded, else its own exit status; 1 if it has none, because it was stopped or killed."""
        if self.state == "SUCCEEDED":
            return 0
        code = self.driver_exit_code
        return code if code is not None and 0 < code < 256 else 1


class Jobs:
    """The jobs of the cluster whose dashboard is at ``address``; ``environment`` holds Ray's token variables.

    Raises:
        ClusterError: the address is not a dashboard's, or the token cannot be read or sent.
    """

    def __init__(self, address: str, environment: Mapping[str, str]) -> None:
        self.address = checked_address(address)
        self._token = ray_token(environment)
        is_local = urllib.parse.urlsplit(self.address).hostname in _LOOPBACK
        self._opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if is_local else []))

    def check(self) -> None:
        """Check that the cluster answers and admits us.

        Raises:
            ClusterError: it does not.
        """
        if not isinstance(self._get("/api/version"), dict) or not isinstance(self._get("/api/jobs/"), list):
            raise self._no_cluster("what answers there is not Ray's dashboard")

    def status(self, identity: str) -> JobStatus | None:
        """The job's status; None if the cluster does not know the job.

        Raises:
            ClusterError: the cluster does not answer.
        """
        found = self._get(f"/api/jobs/{identity}")
        if found is None:
            return None
        if not isinstance(found, dict) or not isinstance(found.get("status"), str):
            raise self._no_cluster("its answer is not a job's status")
        code = found.get("driver_exit_code")
        return JobStatus(found["status"], code if isinstance(code, int) else None)

    def wait(self, identity: str, *, timeout_s: float, poll_s: float) -> JobStatus | None:
        """The job's status once it is finished; None if the cluster does not know the job.

        Raises:
            ClusterError: the cluster does not answer for ``timeout_s`` seconds.
        """
        failing_since: float | None = None
        while True:
            try:
                status = self.status(identity)
                failing_since = None
            except ClusterError:
                failing_since = failing_since or time.monotonic()
                if time.monotonic() - failing_since > timeout_s:
                    raise
            else:
                if status is None or status.is_finished:
                    return status
            time.sleep(poll_s)

    def _get(self, path: str) -> Any:
        """The JSON at ``path``; None if there is nothing."""
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        request = urllib.request.Request(self.address + path, headers=headers)  # noqa: S310 - http or https
        try:
            with self._opener.open(request, timeout=_TIMEOUT_S) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            if error.code in {401, 403}:
                raise ClusterError(
                    f"the Ray cluster at {self.address} does not accept our token; set RAY_AUTH_MODE=token and "
                    "RAY_AUTH_TOKEN_PATH to the cluster's token file"
                ) from None
            raise ClusterError(f"the Ray cluster at {self.address} answered {error.code} to {path}") from None
        except OSError as error:
            raise self._no_cluster(str(getattr(error, "reason", error))) from None
        except (ValueError, http.client.HTTPException):  # their texts quote headers and what was received
            raise self._no_cluster("what answers there is not Ray's dashboard") from None

    def _no_cluster(self, reason: str) -> ClusterError:
        return ClusterError(
            f"no Ray cluster answers at {self.address} ({reason}); check the address, or start one: stoker up"
        )
