"""The fault proxy in front of the test run's object store."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from conftest import Store, environment_with
from faults.proxy import FaultProxy


@pytest.fixture
def proxy(store: Store) -> Iterator[FaultProxy]:
    """A proxy without faults; while the test runs, the environment sends S3 clients through it."""
    found = FaultProxy(store.object_store.endpoint)
    variables = {name: found.url for name in store.environment() if name.startswith("AWS_ENDPOINT_URL")}
    try:
        with environment_with(variables):
            yield found
    finally:
        found.close()
