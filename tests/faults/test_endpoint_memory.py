"""A replica and its decoders take no more memory after many requests than after some (BentoML#4760)."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import Store
from faults.endpoint import PREDICT, deployed
from stoker.embedded import Instance
from traffic import traffic

pytestmark = [pytest.mark.store, pytest.mark.cluster, pytest.mark.long, pytest.mark.timeout(7200)]

FEW, MANY = 20_000, 200_000


def test_memory_is_flat_over_200000_requests(
    cluster: Instance, store: Store, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    with deployed(cluster, store, tmp_path) as endpoint:
        sizes = {}
        with traffic(endpoint.url + PREDICT, endpoint.key, endpoint.image) as seen:
            for count in (FEW, MANY):
                while seen.answers["200"] < count and not seen.failed:
                    time.sleep(0.1)
                sizes[count] = endpoint.memory()
    record_property("memory, MB", sizes)
    assert set(seen.answers) == {"200"}, seen.examples
    for role in ("replica", "decoders"):
        assert sizes[MANY][role] < 1.1 * sizes[FEW][role], sizes
