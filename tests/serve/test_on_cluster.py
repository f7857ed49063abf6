"""The endpoint on a real cluster, behind HAProxy: deploy, predict, roll out another version, and what is left alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

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
from traffic import traffic

pytestmark = [pytest.mark.store, pytest.mark.cluster]

YAML = Path(__file__).parents[2] / "serve" / "digits.yaml"
PATH = "/v1/models/digits/predict"


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "stoker_serve.deploy", *arguments]
    return subprocess.run(line, check=False, capture_output=True, text=True, timeout=400, env=dict(os.environ))


def written(folder: Path, models: list[dict[str, Any]], **deployment: Any) -> Path:
    """A config with an application for each of ``models`` (their args)."""
    config = yaml.safe_load(YAML.read_text())
    front, model = config["applications"]
    shared = {"name": "model", "ray_actor_options": {"num_cpus": 0.5}, **deployment}
    config["applications"] = [front] + [
        {"import_path": model["import_path"], "args": arguments, "deployments": [shared], "name": name}
        for arguments in models
        for name in [arguments["model"].partition("@")[0]]
    ]
    (folder / "serve.yaml").write_text(yaml.safe_dump(config))
    return folder / "serve.yaml"


@pytest.fixture
def storage(cluster: Instance, store: Store) -> Iterator[Location]:
    """A registry with a model in it; Serve is shut down afterwards."""
    storage = finished_run(store.fresh("serve"))
    publish_run(storage, "run", "digits", verify=check_parity, alias="production")
    yield storage
    ended = command("--delete")
    assert ended.returncode == 0, ended.stderr


@pytest.fixture
def client(cluster: Instance) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {cluster.api_key}", "Content-Type": "image/jpeg"}
    with httpx.Client(base_url=cluster.serve_url, headers=headers, timeout=60, trust_env=False) as client:
        yield client


@pytest.fixture
def image(storage: Location) -> bytes:
    return bytes(SampleReader(storage / "data", "validation").read([0])[0].data)


@pytest.mark.timeout(900)
def test_a_model_is_served_and_rolled_without_a_failed_request(
    cluster: Instance, storage: Location, client: httpx.Client, image: bytes, tmp_path: Path
) -> None:
    where = ("--storage", storage.url, "--port", str(cluster.serve_port))
    config = str(written(tmp_path, [{"model": "digits@production"}]))
    first = command(config, *where)
    assert first.returncode == 0, first.stdout + first.stderr
    assert json.loads(first.stdout.splitlines()[-1]) == {"url": cluster.serve_url, "models": ["digits@1"]}

    predictor = Predictor.load("digits@1", storage=storage)
    expected = dict(predictor.top(predictor.predict([image]), 3)[0])
    answer = client.post(PATH, content=image)
    assert (answer.status_code, answer.json()["model"]) == (200, "digits@1")
    got = {row["label"]: row["probability"] for row in answer.json()["predictions"][0]}
    assert got == pytest.approx(expected, abs=1e-4)
    _check_refusals(client, image)
    _check_front(client)

    publish_run(storage, "run", "digits", verify=check_parity, alias="production")
    with traffic(cluster.serve_url + PATH, cluster.api_key, image, connections=4, pause_s=0.01) as seen:
        second = command(config, *where)
    assert second.returncode == 0, second.stdout + second.stderr
    assert seen.failed == 0, seen
    assert set(seen.models) == {"digits@1", "digits@2"}
    assert client.post(PATH, content=image).json()["model"] == "digits@2"
    assert client.post("/v1/models/digits@1/predict", content=image).status_code == 404

    other = command(str(YAML), "--storage", storage.url, "--port", "1")
    assert other.returncode == 2
    assert f"listens on port {cluster.serve_port}, not 1" in other.stderr


def _check_refusals(client: httpx.Client, image: bytes) -> None:
    for name in ("digits@production", "digits@1", "digits@1/"):
        assert client.post(f"/v1/models/{name.rstrip('/')}/predict", content=image).status_code == 200
    assert client.post(f"{PATH}/", content=image).status_code == 200
    refused = {
        422: client.post(PATH, content=image[:600]),
        415: client.post(PATH, content=b"text"),
        413: client.post(PATH, content=bytes(17_000_000)),
        401: client.post(PATH, content=image, headers={"Authorization": "Bearer wrong"}),
        405: client.get(PATH),
        404: client.post("/v1/models/letters/predict", content=image),
        400: client.get("/readyz", headers={f"X-{n}": "x" * 200 for n in range(100)}),
    }
    for status, answer in refused.items():
        assert answer.status_code == status, answer.text
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert answer.json()["status"] == status
    assert refused[404].json()["detail"] == "unknown model 'letters'; served here: digits"


def _check_front(client: httpx.Client) -> None:
    assert client.get("/readyz").json() == {"status": "ready", "models": ["digits@1"]}
    entry = client.get("/v1/models").json()["models"][0]
    assert entry == client.get("/v1/models/digits").json()
    assert (entry["model"], entry["reference"]) == ("digits@1", "digits@production")
    described = client.get("/openapi.json").json()["paths"]
    assert set(described[PATH.replace("digits", "{name}")]["post"]["requestBody"]["content"]) == {
        "image/jpeg",
        "image/png",
        "image/webp",
        "application/octet-stream",
        "multipart/form-data",
        "application/json",
    }
    for path in ("/", "/healthz", "/readyz", "/v1/models", "/openapi.json"):
        assert client.head(path).status_code == 200


@pytest.mark.timeout(900)
def test_a_deploy_leaves_other_models_alone_and_what_failed_is_tried_again(
    cluster: Instance, storage: Location, client: httpx.Client, image: bytes, tmp_path: Path
) -> None:
    publish_run(storage, "run", "letters", verify=check_parity)
    where = ("--storage", storage.url, "--port", str(cluster.serve_port))
    digits = str(written(tmp_path, [{"model": "digits"}]))
    assert command(digits, *where).returncode == 0
    replica = client.get("/v1/models/digits/readyz").headers

    weights = storage / "models" / "letters" / "1" / "model.safetensors"
    kept = weights.read()
    weights.write(kept[:-1] + bytes([kept[-1] ^ 1]))
    (tmp_path / "letters").mkdir()
    limits = {"images": 1, "queue_images": 1, "queue_s": 0.001}
    letters = str(written(tmp_path / "letters", [{"model": "letters", "limits": limits, "batching": {"images": 1}}]))
    broken = command(letters, *where)
    assert broken.returncode == 2
    assert "letters cannot be deployed: " in broken.stderr
    assert client.post(PATH, content=image).status_code == 200

    weights.write(kept)
    repaired = command(letters, *where)
    assert repaired.returncode == 0, repaired.stdout + repaired.stderr
    assert client.get("/readyz").json()["models"] == ["digits@1", "letters@1"]
    assert client.get("/v1/models/digits/readyz").headers.keys() == replica.keys()
    _check_busy(client, image)

    assert command(letters, *where, "--delete").returncode == 0
    assert client.post("/v1/models/letters/predict", content=image).status_code == 404
    assert client.post(PATH, content=image).status_code == 200


def _check_busy(client: httpx.Client, image: bytes) -> None:
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: client.post("/v1/models/letters/predict", content=image), range(200)))
    assert {answer.status_code for answer in answers} == {200, 503}
    refused = next(answer for answer in answers if answer.status_code == 503)
    assert (refused.headers["Retry-After"], refused.json()["code"]) == ("1", "busy")
