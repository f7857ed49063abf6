"""The real store and the real cluster, one of each for the whole test run, in temporary folders."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest

from stoker.embedded import Instance, ObjectStore, Settings

# A test never depends on how fast the machine is.
hypothesis.settings.register_profile("stoker", deadline=None)
hypothesis.settings.load_profile("stoker")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs the cluster runs in one process, the rest beside it in another: each has its own store."""
    for item in items:
        if item.get_closest_marker("cluster"):
            item.add_marker(pytest.mark.xdist_group("cluster"))


@dataclass(frozen=True)
class Store:
    """The object store of the test run, already in ``os.environ``."""

    instance: Instance
    url: str  # s3://stoker

    @property
    def object_store(self) -> ObjectStore:
        return self.instance.store

    def environment(self) -> dict[str, str]:
        return self.object_store.environment()

    def fresh(self, name: str = "test") -> str:
        """A prefix that nobody used before, as ``s3://stoker/<name>-<random>``."""
        return f"{self.url}/{name}-{uuid.uuid4().hex[:12]}"


@contextmanager
def environment_with(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@pytest.fixture(scope="session")
def settings() -> Settings:
    """The settings of the checkout, on any free ports."""
    ports = {"s3": 0, "gcs": 0, "dashboard": 0, "serve": 0}
    return Settings.model_validate({**Settings.read().model_dump(), "ports": ports})


@pytest.fixture(scope="session")
def _instance(settings: Settings) -> Iterator[Instance]:
    with tempfile.TemporaryDirectory(prefix="stoker-test-") as folder:
        instance = Instance(Path(folder) / "state", settings)
        try:
            yield instance
        finally:
            instance.stop()


@pytest.fixture(scope="session")
def store(_instance: Instance) -> Iterator[Store]:
    """A running object store; its AWS_* variables are set for the rest of the test run."""
    with _instance.folder.lock():
        _instance.store.start()
    with environment_with(_instance.store.environment()):
        yield Store(_instance, _instance.store.url)


@pytest.fixture(scope="session")
def cluster(_instance: Instance, store: Store) -> Iterator[Instance]:
    """A running Ray cluster on top of the store; what its clients read is set for the rest of the test run."""
    _instance.start("quickstart")
    with environment_with(_instance.environment()):
        yield _instance
