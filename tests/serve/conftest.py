"""Fixtures: a model in a registry, and a server of it."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from published import finished_run
from served import KEY, LIMITS, serving
from stoker.dataset import SampleReader
from stoker.predict import check_parity
from stoker.registry import publish_run
from stoker.storage import Location
from stoker_serve.settings import Batching, ModelSettings


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Location:
    storage = finished_run(tmp_path_factory.mktemp("storage"))
    publish_run(storage, "run", "digits", verify=check_parity, alias="production")
    return storage


@pytest.fixture(scope="module")
def client(storage: Location) -> Iterator[httpx.Client]:
    settings = ModelSettings(
        model="digits@production",
        version="digits@1",
        storage=storage.url,
        limits=LIMITS,
        batching=Batching(images=2),
        engine="eager",
        origins=["https://shop.example"],
    )
    headers = {"Authorization": f"Bearer {KEY}"}
    with (
        serving(settings) as url,
        httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def images(storage: Location) -> list[bytes]:
    return [bytes(sample.data) for sample in SampleReader(storage / "data", "validation").read(range(3))]
