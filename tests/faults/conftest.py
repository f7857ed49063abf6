"""The fault proxy in front of the test run's object store, and the clients that read through it."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator

import pytest

from conftest import Store, environment_with
from faults.proxy import FaultProxy
from stoker.embedded import Instance


@pytest.fixture(scope="session")
def _proxy(store: Store) -> Iterator[FaultProxy]:
    # One for all tests: another address would be another filesystem and client in each.
    found = FaultProxy(store.object_store.endpoint)
    try:
        yield found
    finally:
        found.close()


@pytest.fixture
def proxy(store: Store, _proxy: FaultProxy) -> Iterator[FaultProxy]:
    """The proxy, without faults yet; while the test runs, the environment sends S3 clients through it."""
    variables = {name: _proxy.url for name in store.environment() if name.startswith("AWS_ENDPOINT_URL")}
    with environment_with(variables), _proxy.faults():
        yield _proxy


@pytest.fixture(params=["s3fs", "obstore"])
def client(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The client that reads ranges: a test that asks for it runs once with each."""
    monkeypatch.setenv("STOKER_S3_CLIENT", request.param)
    return str(request.param)


@pytest.fixture
def roomy(cluster: Instance) -> Instance:
    """The cluster, without an endpoint of another test that would hold the CPUs that workers wait for."""
    headers = {"Authorization": f"Bearer {cluster.folder.ray_token()}"}
    request = urllib.request.Request(
        f"{cluster.dashboard_url}/api/serve/applications/", headers=headers, method="DELETE"
    )
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
        assert answer.status == 200
    return cluster
