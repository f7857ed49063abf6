"""The whole line as a user drives it: real digits, real store, real cluster, real jobs, real HTTP."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import httpx
import pytest

from conftest import Store
from driven import run, submit, write_digits
from stoker.embedded import Instance
from stoker.registry import Registry
from stoker.storage import locate
from stoker.training.telemetry.events import read_events


@pytest.mark.store
@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_images_go_through_the_line_and_come_back_as_an_answer(cluster: Instance, store: Store, tmp_path: Path) -> None:
    storage = store.fresh("line")
    data = f"{storage}/datasets/digits"
    slice_of_digits = write_digits(tmp_path)
    submit("jobs/prepare.py", str(slice_of_digits), data)

    overrides = (f"storage={storage}", f"data.url={data}", "schedule.epochs=3", "checkpoint.every_steps=5")
    log = submit("jobs/train.py", "jobs/recipes/digits.yaml", *overrides)
    assert any("epoch 3/3 done" in line and "of 80" in line and "images/s" in line for line in log)
    assert any("epoch 3/3 took" in line and "compute" in line and "restart 0.0%" in line for line in log)
    trained = json.loads(next(line for line in reversed(log) if line.startswith('{"run"')))
    assert trained["samples"] == 80

    python = sys.executable
    published = json.loads(
        run(python, "jobs/publish.py", "digits", "digits", "--storage", storage, "--alias", "production")[-1]
    )
    assert published["model"] == "digits@1"
    evaluated = json.loads(run(python, "jobs/evaluate.py", "digits@production", "--storage", storage)[-1])
    assert evaluated["accuracy"] == pytest.approx(trained["accuracy"])
    report = Registry(locate(storage)).resolve("digits").read("report.html")
    assert b"Where the time went" in report
    assert report.count(b'<img src="data:image/jpeg;base64,') == min(24, 80 - round(trained["accuracy"] * 80))
    run_folder = locate(storage) / "runs" / "digits"
    assert [event["epoch"] for event in read_events(run_folder / "events") if event["kind"] == "epoch"] == [0, 1, 2]
    assert (run_folder / "tensorboard").children()

    port = str(cluster.serve_port)
    run(python, "-m", "stoker_serve.deploy", "serve/digits.yaml", "--storage", storage, "--port", port)
    url = f"{cluster.serve_url}/v1/models/digits/predict"
    key = {"Authorization": f"Bearer {cluster.api_key}", "Content-Type": "image/jpeg"}
    with httpx.Client(timeout=60, trust_env=False) as client:
        assert client.get(f"{cluster.serve_url}/readyz").status_code == 200
        right = 0
        for path in sorted(slice_of_digits.glob("validation/*/*.jpg")):
            answer = client.post(url, content=path.read_bytes(), headers=key)
            assert answer.status_code == 200, answer.text
            assert answer.json()["model"] == "digits@1"
            right += answer.json()["predictions"][0][0]["label"] == path.parent.name
        assert right == round(trained["accuracy"] * 80)
        assert client.post(url, content=b"no image", headers=key).status_code == 415
        assert client.post(url, content=b"x").status_code == 401
