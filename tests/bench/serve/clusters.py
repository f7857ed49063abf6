"""The clusters of the benchmark: stoker's own with its store, and one with Ray's defaults that reads the same store."""

from __future__ import annotations

import contextlib
import json
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from bench.serve.place import CHECKOUT, CaseFailed, child_environment, python, run
from bench.serve.wrk import Target
from stoker.embedded import Instance, RayCluster, Settings, StateFolder
from stoker.embedded.processes import program

__all__ = [
    "DIGITS",
    "RESNET50",
    "Stock",
    "Stoker",
    "configuration",
    "post",
    "publish",
    "stock",
    "stoker",
    "wait_for_answer",
]

logger = logging.getLogger(__name__)

DIGITS = ("digits", "digitsnet", 10, 32, 32)
RESNET50 = ("resnet50", "resnet50", 1000, 224, 232)
_ANY_PORT = {"s3": 0, "gcs": 0, "dashboard": 0, "serve": 0}
_RAYS_OWN = {"RAY_SERVE_ENABLE_HA_PROXY": "0", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "0", "RAY_worker_niceness": "15"}
"""Ray's defaults where stoker has others"""
_NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass
class Stoker:
    """A started instance; ``environment`` is what a user's programs need."""

    instance: Instance
    folder: Path
    environment: dict[str, str]
    published: set[str] = field(default_factory=set)

    @property
    def storage(self) -> str:
        return self.instance.url

    def target(self, name: str, body: Path) -> Target:
        return Target(f"{self.instance.serve_url}/v1/models/{name}/predict", body, key=self.instance.api_key)

    def publish(self, model: tuple[str, str, int, int, int]) -> None:
        """Publish ``model``, once."""
        if model[0] not in self.published:
            publish(self.environment, self.storage, model)
            self.published.add(model[0])

    def deploy(self, config: Mapping[str, Any], *, timeout_s: int = 180) -> None:
        """Deploy by ``stoker deploy``."""
        file = self.folder / "serve.yaml"
        file.write_text(yaml.safe_dump(dict(config)))
        options = ["--storage", self.storage, "--port", str(self.instance.serve_port)]
        command = python("-m", "stoker", "deploy", str(file), *options, "--timeout", str(timeout_s))
        try:
            run(command, self.environment)
        except CaseFailed as error:  # on a busy machine Ray's dashboard gives up while Serve starts
            logger.info("%s; once more", error)
            run(command, self.environment)


@dataclass
class Stock:
    """A cluster with Ray's defaults."""

    cluster: RayCluster
    folder: Path
    environment: dict[str, str]

    def target(self, path: str, body: Path) -> Target:
        return Target(self.cluster.serve_url + path, body)

    def deploy(self, applications: Sequence[Mapping[str, Any]], paths: Sequence[str], body: Path) -> None:
        """Deploy by Ray's ``serve deploy``, and wait until each of ``paths`` answers."""
        file = self.folder / "stock.yaml"
        options = {"host": "127.0.0.1", "port": self.cluster.serve_port}
        config = {"proxy_location": "HeadOnly", "http_options": options, "applications": list(applications)}
        file.write_text(yaml.safe_dump(config))
        run([program("serve"), "deploy", str(file), "-a", self.cluster.dashboard_url], self.environment)
        for path in paths:
            wait_for_answer(self.target(path, body), 120)


@contextlib.contextmanager
def stoker(folder: Path) -> Iterator[Stoker]:
    """Store and cluster as ``make up`` starts them, on free ports; ended when the block is left."""
    settings = Settings.model_validate(Settings.read().model_dump() | {"ports": _ANY_PORT})
    instance = Instance(folder / "stoker", settings)
    try:
        instance.start("quickstart")
        yield Stoker(instance, folder, child_environment(instance.environment()))
    finally:
        instance.stop()


@contextlib.contextmanager
def stock(folder: Path, store: Mapping[str, str]) -> Iterator[Stock]:
    """A cluster whose Serve has its own proxy; ``store`` are the variables of the store that it reads."""
    known = Settings.read().model_dump() | {"ports": _ANY_PORT}
    settings = Settings.model_validate(known | {"environment": known["environment"] | _RAYS_OWN})
    cluster = RayCluster(StateFolder(folder / "stock"), settings)
    try:
        with cluster.folder.lock():
            cluster.start(store)
        yield Stock(cluster, folder, child_environment({**store, **cluster.environment()}))
    finally:
        with cluster.folder.lock():
            cluster.stop()


def publish(environment: Mapping[str, str], storage: str, model: tuple[str, str, int, int, int]) -> None:
    """Publish ``model`` (name, architecture, classes, image size, resize) with random weights, as production."""
    run(python(str(Path(__file__).with_name("publish.py")), storage, *map(str, model)), environment)


def configuration(
    *,
    models: Sequence[str] = ("digits",),
    limits: Mapping[str, float] = {},
    settings: Mapping[str, Any] = {},
    replicas: tuple[int, int] = (1, 1),
    downscale_s: float = 60,
    empty: str = "",
) -> dict[str, Any]:
    """serve/digits.yaml with other models, limits and settings, and ``replicas`` (least, most).

    ``empty`` is the name and the path of an application with an empty handler beside them.
    """
    config: dict[str, Any] = yaml.safe_load((CHECKOUT / "serve" / "digits.yaml").read_text())
    front, digits = config["applications"]
    found = []
    for name in models:
        one = json.loads(json.dumps(digits)) | {"name": name, "route_prefix": f"/v1/models/{name}"}
        one["args"]["model"] = f"{name}@production"
        one["args"] |= settings
        one["args"]["limits"] |= limits
        scaling = one["deployments"][0]["autoscaling_config"]
        scaling |= {"min_replicas": replicas[0], "max_replicas": replicas[1], "downscale_delay_s": downscale_s}
        found.append(one)
    if empty:
        found.append(
            {"name": empty, "route_prefix": f"/{empty}", "import_path": "bench.serve.apps.empty:app", "args": {}}
        )
    return {**config, "applications": [front, *found]}


def post(target: Target, *, timeout_s: float = 60) -> int:
    """Post once on a connection of its own; returns the status, 0 if nobody answers."""
    headers = {"Content-Type": target.media_type}
    if target.key:
        headers["Authorization"] = f"Bearer {target.key}"
    request = urllib.request.Request(target.url, target.body.read_bytes(), headers)
    try:
        with _NO_PROXY.open(request, timeout=timeout_s) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def wait_for_answer(target: Target, timeout_s: float) -> float:
    """Post until 200; returns how many seconds that took.

    Raises:
        CaseFailed: none in ``timeout_s`` seconds.
    """
    began = time.monotonic()
    while (status := post(target, timeout_s=10)) != 200:
        if time.monotonic() - began > timeout_s:
            raise CaseFailed(f"{target.url} did not answer within {timeout_s:.0f} s (last status: {status or 'none'})")
        time.sleep(0.05)
    return time.monotonic() - began
