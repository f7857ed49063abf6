"""What ``stoker up`` deploys, and that it leaves alone what a user deployed."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import environment_with
from stoker.embedded import Instance, endpoint
from stoker.errors import ClusterError, StokerError

pytestmark = pytest.mark.cluster


def asked(instance: Instance, method: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """The answer of Serve's REST API."""
    request = urllib.request.Request(
        f"{instance.dashboard_url}/api/serve/applications/",
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {instance.folder.ray_token()}", "Content-Type": "application/json"},
    )
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=120) as answer:
        content = answer.read()
    return dict(json.loads(content)) if method == "GET" else {}


@pytest.fixture
def bare(cluster: Instance) -> Iterator[Instance]:
    """The cluster without an application."""
    asked(cluster, "DELETE")
    with environment_with(cluster.environment()):
        yield cluster
    asked(cluster, "DELETE")


def test_an_application_that_a_user_deployed_is_left_alone(bare: Instance, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "CONFIGS", (("serve/digits.yaml", ()),))  # as if the digits had been published
    application = {"name": "mine", "route_prefix": "/mine", "import_path": "a_module_of_mine:application"}
    options = {"host": "127.0.0.1", "port": bare.serve_port}
    asked(bare, "PUT", {"http_options": options, "applications": [application]})
    before = asked(bare, "GET")["applications"]
    assert before.keys() == {"mine"}
    assert endpoint.deploy_endpoint(bare) == bare.serve_url
    after = asked(bare, "GET")["applications"]
    assert after.keys() == {"mine"}
    assert after["mine"]["last_deployed_time_s"] == before["mine"]["last_deployed_time_s"]


def test_without_an_application_what_was_published_is_deployed(bare: Instance, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bare.cluster.applications() == []
    monkeypatch.setattr(endpoint, "CONFIGS", (("serve/no-such.yaml", ()),))
    with pytest.raises(StokerError, match="no-such"):
        endpoint.deploy_endpoint(bare)


def test_a_cluster_that_does_not_tell_is_one_line(tmp_path: Path) -> None:
    instance = Instance(tmp_path / "state")
    instance.folder.prepare()
    instance.folder.record("cluster", {"ports": {"dashboard": 9}})
    with pytest.raises(ClusterError, match=r"^http://127\.0\.0\.1:9 does not tell what Serve runs \(.*\); the log is "):
        instance.cluster.applications()
