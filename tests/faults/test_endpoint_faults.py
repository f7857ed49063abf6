"""What happens to requests while the endpoint's processes are killed, replaced, scaled and stopped."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from conftest import Store
from published import finished_run
from stoker.dataset import SampleReader
from stoker.embedded import Instance
from stoker.predict import check_parity
from stoker.registry import publish_run
from stoker.storage import Location
from stoker_serve.config import read_plan
from stoker_serve.deploy import deploy, remove
from traffic import Seen, traffic

pytestmark = [pytest.mark.store, pytest.mark.cluster, pytest.mark.long, pytest.mark.timeout(1800)]

YAML = Path(__file__).parents[2] / "serve" / "digits.yaml"
PATH = "/v1/models/digits/predict"


@pytest.fixture
def storage(roomy: Instance, store: Store) -> Iterator[Location]:
    storage = finished_run(store.fresh("serve"))
    publish_run(storage, "run", "digits", verify=check_parity, alias="production")
    yield storage
    remove(roomy.dashboard_url)


@pytest.fixture
def image(storage: Location) -> bytes:
    return bytes(SampleReader(storage / "data", "validation").read([0])[0].data)


def serve(cluster: Instance, storage: Location, folder: Path, **deployment: Any) -> None:
    """Deploy digits@production with replicas as ``deployment`` says; returns when it answers."""
    config = yaml.safe_load(YAML.read_text())
    shared = {"name": "model", "ray_actor_options": {"num_cpus": 0.5}, **deployment}
    config["applications"][1] |= {"deployments": [shared]}
    config["applications"][1]["args"]["limits"] = {"queue_s": 20}
    (folder / "serve.yaml").write_text(yaml.safe_dump(config))
    deploy(read_plan(folder / "serve.yaml", storage=storage.url, port=cluster.serve_port), cluster.dashboard_url)


def processes(cluster: Instance, title: str) -> list[psutil.Process]:
    """The cluster's processes whose command line begins with ``title``."""
    mine = str(cluster.folder.temporary("t"))
    found = []
    for process in psutil.process_iter():
        try:
            if " ".join(process.cmdline()).startswith(title) and process.environ().get("TMPDIR") == mine:
                found.append(process)
        except psutil.Error:
            continue
    return found


def until(happens: Callable[[], bool], timeout_s: float = 180.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def replicas(cluster: Instance) -> list[psutil.Process]:
    return processes(cluster, "ray::ServeReplica:digits:model")


def test_no_request_of_twenty_thousand_fails_through_roll_outs_kills_and_a_scale_down(
    roomy: Instance, storage: Location, image: bytes, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    serve(roomy, storage, tmp_path, num_replicas=2)
    url, key = roomy.serve_url + PATH, roomy.api_key
    with traffic(url, key, image, connections=4) as seen:
        for _ in range(5):
            publish_run(storage, "run", "digits", verify=check_parity, alias="production")
            serve(roomy, storage, tmp_path, num_replicas=2)
        replicas(roomy)[0].kill()
        until(lambda: len(replicas(roomy)) >= 2)
        processes(roomy, "ray::ServeController")[0].kill()
        time.sleep(20)
        serve(roomy, storage, tmp_path, num_replicas=1)
        until(lambda: seen.answers["200"] >= 20_000, 900)
        time.sleep(30)
    record_property("answers", dict(seen.answers))
    assert seen.failed == 0, seen
    assert {"digits@1", "digits@6"} <= set(seen.models)


def test_when_haproxy_is_killed_clients_that_ask_again_lose_nothing(
    roomy: Instance, storage: Location, image: bytes, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    serve(roomy, storage, tmp_path, num_replicas=1)
    binary = [p for p in processes(roomy, "") if p.name() == "haproxy"]
    with traffic(roomy.serve_url + PATH, roomy.api_key, image, connections=4, pause_s=0.01, retries=5) as seen:
        time.sleep(2)
        binary[0].kill()
        publish_run(storage, "run", "digits", verify=check_parity, alias="production")
        serve(roomy, storage, tmp_path, num_replicas=1)  # the next HAProxy hears of new replicas
    record_property("gap_s", seen.gap_s)
    assert seen.failed == 0, seen
    assert seen.gap_s < 4, seen
    assert set(seen.models) == {"digits@1", "digits@2"}


def test_a_replica_that_no_longer_decodes_is_replaced(
    roomy: Instance, storage: Location, image: bytes, tmp_path: Path
) -> None:
    serve(roomy, storage, tmp_path, num_replicas=1)
    (first,) = replicas(roomy)
    for process in first.children(recursive=True):
        process.send_signal(signal.SIGSTOP)  # the template, and the children that it forked
    headers = {"Authorization": f"Bearer {roomy.api_key}", "Content-Type": "image/jpeg"}

    def is_answered() -> bool:
        if not any(replica.pid != first.pid for replica in replicas(roomy)):
            return False
        try:
            answer = httpx.post(roomy.serve_url + PATH, content=image, headers=headers, timeout=5, trust_env=False)
        except httpx.HTTPError:
            return False
        return answer.status_code == httpx.codes.OK

    until(is_answered, 300)


def test_a_model_that_is_scaled_to_zero_answers_its_first_request_and_is_ready_meanwhile(
    roomy: Instance, storage: Location, image: bytes, tmp_path: Path
) -> None:
    scaling = {
        "min_replicas": 0,
        "max_replicas": 1,
        "initial_replicas": 1,
        "downscale_delay_s": 3,
        "upscale_delay_s": 0,
    }
    serve(roomy, storage, tmp_path, autoscaling_config=scaling)
    until(lambda: not replicas(roomy), 300)
    with httpx.Client(base_url=roomy.serve_url, timeout=120, trust_env=False) as client:
        assert client.get("/readyz").status_code == httpx.codes.OK
    seen: Seen
    with traffic(roomy.serve_url + PATH, roomy.api_key, image, connections=1) as seen:
        until(lambda: seen.answers["200"] > 0)
    assert seen.failed == 0, seen
