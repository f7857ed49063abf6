"""The fault proxy in front of the test run's object store, and the clients that read through it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from conftest import Store, environment_with
from faults.proxy import FaultProxy


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
