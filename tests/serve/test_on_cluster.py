"""The application on a real cluster: deploy, predict, roll out another version, shut down."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import yaml

from conftest import Store
from published import finished_run
from stoker.dataset import SampleReader
from stoker.embedded import Instance
from stoker.predict import Predictor, check_parity
from stoker.registry import publish_run
from stoker.storage import Location

pytestmark = [pytest.mark.store, pytest.mark.cluster]

YAML = Path(__file__).parents[2] / "serve" / "digits.yaml"


def tight(folder: Path) -> Path:
    """The shipped YAML with one ongoing and one queued request at most, each of which takes a while."""
    config = yaml.safe_load(YAML.read_text())
    application = config["applications"][0]
    application["args"]["batching"] = {"images": 32, "wait_ms": 400}
    application["deployments"][1] |= {"max_ongoing_requests": 1, "max_queued_requests": 1}
    (folder / "tight.yaml").write_text(yaml.safe_dump(config))
    return folder / "tight.yaml"


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "stoker_serve.deploy", *arguments]
    return subprocess.run(line, check=False, capture_output=True, text=True, timeout=400, env=dict(os.environ))


@pytest.fixture
def storage(cluster: Instance, store: Store) -> Iterator[Location]:
    """A registry with a model in it; Serve is shut down afterwards."""
    storage = finished_run(store.fresh("serve"))
    publish_run(storage, "run", "digits", verify=check_parity, alias="production")
    yield storage
    ended = command("--delete")
    assert ended.returncode == 0, ended.stderr


@pytest.mark.timeout(900)
def test_a_model_is_served_rolled_without_a_failed_request_and_refuses_what_is_too_much(
    cluster: Instance, storage: Location, tmp_path: Path
) -> None:
    where = ("--storage", storage.url, "--port", str(cluster.serve_port))
    first = command(str(YAML), *where)
    assert first.returncode == 0, first.stdout + first.stderr
    assert json.loads(first.stdout.splitlines()[-1]) == {"url": cluster.serve_url, "models": ["digits@1"]}

    image = bytes(SampleReader(storage / "data", "validation").read([0])[0].data)
    predictor = Predictor.load("digits@1", storage=storage)
    expected = dict(predictor.top(predictor.predict([image]), 3)[0])
    headers = {"Authorization": f"Bearer {cluster.api_key}", "Content-Type": "image/jpeg"}
    path = "/v1/models/digits/predict"
    with httpx.Client(base_url=cluster.serve_url, headers=headers, timeout=60, trust_env=False) as client:
        answer = client.post(path, content=image)
        assert (answer.status_code, answer.json()["model"]) == (200, "digits@1")
        got = {row["label"]: row["probability"] for row in answer.json()["predictions"][0]}
        assert got == pytest.approx(expected, abs=1e-2)  # the engine is chosen there
        assert client.post(path, content=image[:600]).status_code == 422
        assert client.post(path, content=b"text").status_code == 415
        assert client.post(path, content=bytes(17_000_000)).status_code == 413
        assert client.post(path, content=image, headers={"Authorization": "Bearer wrong"}).status_code == 401

        publish_run(storage, "run", "digits", verify=check_parity, alias="production")
        answers: list[tuple[int, str]] = []
        is_rolled = threading.Event()

        def ask() -> None:
            while not is_rolled.is_set():
                answer = client.post(path, content=image)
                answers.append((answer.status_code, answer.json().get("model", answer.text)))

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            second = command(str(YAML), *where)
        finally:
            is_rolled.set()
            asking.join()
        assert second.returncode == 0, second.stdout + second.stderr
        assert client.post(path, content=image).json()["model"] == "digits@2"
        assert [answer for answer in answers if answer[0] != 200] == []

        third = command(str(tight(tmp_path)), *where)
        assert third.returncode == 0, third.stdout + third.stderr
        with ThreadPoolExecutor(16) as pool:
            burst = list(pool.map(lambda _: client.post(path, content=image), range(16)))
        assert {answer.status_code for answer in burst} == {200, 503}
        refused = next(answer for answer in burst if answer.status_code == 503)
        assert (refused.headers["Retry-After"], refused.json()["error"]["code"]) == ("1", "busy")

    other = command(str(YAML), "--storage", storage.url, "--port", "1")
    assert other.returncode == 2
    assert f"listens on port {cluster.serve_port}, not 1" in other.stderr
