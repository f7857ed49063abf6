"""A Serve YAML is checked before the cluster is contacted: each mistake gets one line and status 2."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from published import finished_run
from stoker.embedded.ports import free_ports
from stoker.errors import ClusterError, ModelError
from stoker.predict import check_parity
from stoker.registry import Registry, publish_run
from stoker.storage import Location
from stoker_serve.config import read_plan
from stoker_serve.deploy import deploy

YAML = Path(__file__).parents[2] / "serve" / "digits.yaml"


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Location:
    storage = finished_run(tmp_path_factory.mktemp("storage"))
    publish_run(storage, "run", "digits", verify=check_parity, alias="production")
    publish_run(storage, "run", "letters", verify=check_parity)
    return storage


def written(folder: Path, **changed: object) -> Path:
    """The shipped YAML with keys of its application changed."""
    config = yaml.safe_load(YAML.read_text())
    config["applications"][0].update(changed)
    (folder / "serve.yaml").write_text(yaml.safe_dump(config))
    return folder / "serve.yaml"


def test_the_shipped_config_is_on_loopback_with_keys_and_bounds_and_rolls_without_a_gap(storage: Location) -> None:
    plan = read_plan(YAML, storage=storage.url)
    application = plan.config["applications"][0]
    assert (plan.url, application["args"]["authentication"]) == ("http://127.0.0.1:8000", "keys")
    assert [entry["name"] for entry in application["deployments"]] == ["http", "digits"]
    assert all(entry["max_queued_requests"] > 0 for entry in application["deployments"])
    assert all(entry["max_surge_percent"] > 0 for entry in application["deployments"])


def test_a_moved_alias_changes_what_is_deployed(storage: Location) -> None:
    before = read_plan(YAML, storage=storage.url)
    version = publish_run(storage, "run", "digits", verify=check_parity).version
    assert read_plan(YAML, storage=storage.url).config == before.config
    Registry(storage).set_alias("digits", "production", version)
    after = read_plan(YAML, storage=storage.url)
    assert after.config != before.config
    assert [model.version for model in after.deployed] == [f"digits@{version}"]


def test_other_models_and_another_port_can_be_given(storage: Location) -> None:
    plan = read_plan(YAML, storage=storage.url, models=["letters", "digits@1"], port=8123)
    entries = plan.config["applications"][0]["deployments"]
    assert [entry["name"] for entry in entries] == ["http", "letters", "digits"]
    assert entries[1]["autoscaling_config"] == entries[2]["autoscaling_config"]
    assert plan.url == "http://127.0.0.1:8123"
    assert plan.deployed[0].names == {"letters", "letters@1"}


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


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"args": {"models": ["digits"], "tops": 3}}, "args: tops: Extra inputs are not permitted"),
        ({"args": {"models": []}}, "args: models: List should have at least 1 item"),
        ({"args": {"models": ["digits@1", "digits@2"]}}, "model 'digits' is listed twice; list one version"),
        ({"args": {"models": ["digits"], "top": "many"}}, "args: top: Input should be a valid integer"),
        ({"import_path": "other:app"}, "applications: 0 have import_path stoker_serve.app:build, expected 1"),
        ({"deployments": [{"name": "digits", "max_ongoing_requests": "x"}]}, "max_ongoing_requests"),
    ],
)
def test_a_wrong_config_is_refused_with_its_key(
    storage: Location, tmp_path: Path, changed: dict[str, object], line: str
) -> None:
    with pytest.raises(ClusterError, match=line) as caught:
        read_plan(written(tmp_path, **changed), storage=storage.url)
    assert "\n" not in str(caught.value)


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
