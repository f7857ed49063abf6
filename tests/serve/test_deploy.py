"""A Serve YAML is checked before the cluster is contacted: each mistake gets one line and status 2."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from published import finished_run
from stoker.embedded.ports import free_ports
from stoker.errors import ClusterError, ModelError
from stoker.predict import check_parity
from stoker.registry import Registry, publish_run
from stoker.storage import Location
from stoker_serve.config import Plan, read_plan
from stoker_serve.deploy import deploy

YAML = Path(__file__).parents[2] / "serve" / "digits.yaml"


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Location:
    storage = finished_run(tmp_path_factory.mktemp("storage"))
    publish_run(storage, "run", "digits", verify=check_parity, alias="production")
    publish_run(storage, "run", "letters", verify=check_parity)
    return storage


def written(folder: Path, changes: dict[str, object] | None = None, **model: object) -> Path:
    """The shipped YAML with keys of the model's application changed by ``model``, of the file by ``changes``."""
    config = yaml.safe_load(YAML.read_text())
    config["applications"][1].update(model)
    config |= changes or {}
    (folder / "serve.yaml").write_text(yaml.safe_dump(config))
    return folder / "serve.yaml"


def of(plan: Plan, name: str) -> dict[str, Any]:
    return next(application for application in plan.applications if application["name"] == name)


def test_the_shipped_config_is_on_loopback_with_keys_and_a_front(storage: Location) -> None:
    plan = read_plan(YAML, storage=storage.url)
    assert (plan.url, plan.names) == ("http://127.0.0.1:8000", ["front", "digits"])
    assert {application["args"]["authentication"] for application in plan.applications} == {"keys"}
    assert of(plan, "front")["args"]["storage"] == storage.url
    assert of(plan, "digits")["route_prefix"] == "/v1/models/digits"


def test_a_moved_alias_changes_what_is_deployed(storage: Location) -> None:
    before = read_plan(YAML, storage=storage.url)
    version = publish_run(storage, "run", "digits", verify=check_parity).version
    assert read_plan(YAML, storage=storage.url) == before
    Registry(storage).set_alias("digits", "production", version)
    after = read_plan(YAML, storage=storage.url)
    assert after.applications != before.applications
    assert [model.version for model in after.models] == [f"digits@{version}"]


def test_other_models_and_another_port_can_be_given(storage: Location) -> None:
    plan = read_plan(YAML, storage=storage.url, models=["letters", "digits@1"], port=8123)
    assert plan.names == ["front", "letters", "digits"]
    letters, digits = of(plan, "letters"), of(plan, "digits")
    assert letters["deployments"] == digits["deployments"]
    assert letters["route_prefix"] == "/v1/models/letters"
    assert plan.url == "http://127.0.0.1:8123"
    assert [model.references for model in plan.models] == [("1",), ("1",)]


def test_a_config_without_a_front_gets_one_and_other_applications_stay(storage: Location, tmp_path: Path) -> None:
    config = yaml.safe_load(YAML.read_text())
    other = {"name": "other", "route_prefix": "/other", "import_path": "other:app"}
    config["applications"] = [config["applications"][1] | {"args": {"model": "digits", "origins": ["*"]}}, other]
    plan = read_plan(written(tmp_path, config), storage=storage.url)
    assert plan.names == ["front", "other", "digits"]
    assert of(plan, "front")["args"]["origins"] == ["*"]
    assert of(plan, "other") == other


@pytest.mark.parametrize(
    ("reference", "line"),
    [
        ("digit@production", r"unknown model 'digit' .*; did you mean digits\?"),
        ("digits@staging", "digits has no alias 'staging'; its aliases: digits@production"),
        ("digits@99", "digits has no version 99"),
    ],
)
def test_an_unknown_model_is_refused(storage: Location, reference: str, line: str) -> None:
    with pytest.raises(ModelError, match=line):
        read_plan(YAML, storage=storage.url, models=[reference])


ARGS = {"model": "digits"}


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"args": {**ARGS, "tops": 3}}, "args: tops: Extra inputs are not permitted"),
        ({"args": {"model": ""}}, "args: model: String should have at least 1 character"),
        ({"args": {"model": "front@1"}}, "args: model: model name 'front' is the front's application"),
        ({"args": {**ARGS, "top": "many"}}, "args: top: Input should be a valid integer"),
        ({"args": {**ARGS, "origins": ["shop.example"]}}, "'shop.example' is not an origin; write a scheme"),
        ({"args": {**ARGS, "limits": {"queue_images": 3}}}, r"queue_images \(3\) is below images \(32\)"),
        ({"args": {**ARGS, "limits": {"queue_s": 30}}}, r"queue_s \(30\) is not below answer_s \(30\)"),
        ({"args": {**ARGS, "limits": {"held_bytes": 5}}}, r"held_bytes \(5\) is below body_bytes"),
        ({"import_path": "other:app"}, "none has import_path stoker_serve.app:model, so no model is served"),
        ({"name": "other"}, "name of digits@production is 'other'; leave it out, or write 'digits'"),
        ({"route_prefix": "/"}, "route_prefix of digits@production is '/'; leave it out, or write '/v1/models/digits'"),
        ({"deployments": [{"name": "model", "num_replicas": "x"}]}, "num_replicas"),
        ({"deployments": [{"name": "http"}]}, "a model's application has one deployment, named model"),
        ({"deployments": [{"name": "model", "max_ongoing_requests": 64}]}, "never be told that the replica is busy"),
        ({"deployments": [{"name": "model", "max_queued_requests": 64}]}, "refuses before the replica can"),
        ({"deployments": [{"name": "model", "graceful_shutdown_timeout_s": 5}]}, "accepted requests would be cut off"),
    ],
)
def test_a_wrong_config_is_refused_with_its_key(
    storage: Location, tmp_path: Path, changed: dict[str, object], line: str
) -> None:
    with pytest.raises(ClusterError, match=line) as caught:
        read_plan(written(tmp_path, **changed), storage=storage.url)
    assert "\n" not in str(caught.value)


def test_a_model_that_is_there_twice_is_refused(storage: Location, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="model 'digits' has two applications; keep one"):
        read_plan(YAML, storage=storage.url, models=["digits@1", "digits@production"])


def test_without_storage_it_says_how_to_give_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STOKER_STORAGE", raising=False)
    with pytest.raises(ClusterError, match="set storage, or STOKER_STORAGE"):
        read_plan(YAML)


def test_a_file_that_is_missing_or_not_valid_yaml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="cannot read .*nowhere.yaml"):  # noqa: RUF043
        read_plan(tmp_path / "nowhere.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1,")
    with pytest.raises(ClusterError, match="is not valid YAML"):
        read_plan(tmp_path / "bad.yaml")
    (tmp_path / "text.yaml").write_text("just text")
    with pytest.raises(ClusterError, match="is not a Serve config: no keys found"):
        read_plan(tmp_path / "text.yaml")


def test_no_cluster_gets_one_line(storage: Location) -> None:
    (port,) = free_ports(1)
    with pytest.raises(ClusterError, match=f"no Ray cluster answers at http://127.0.0.1:{port}; start one"):
        deploy(read_plan(YAML, storage=storage.url), f"http://127.0.0.1:{port}")


def test_the_command_prints_one_line_and_exits_with_2(storage: Location) -> None:
    command = [sys.executable, "-m", "stoker_serve.deploy", str(YAML), "--storage", storage.url, "--model", "nothing"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith("error: model 'nothing': unknown model 'nothing'")
    assert "Traceback" not in done.stderr
