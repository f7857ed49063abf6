"""What is sent to a cluster that serves already: other applications stay, a failed one is tried again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from published import finished_run
from stoker.errors import ClusterError
from stoker.predict import check_parity
from stoker.registry import publish_run
from stoker.storage import Location
from stoker_serve.config import Plan, read_names, read_plan
from stoker_serve.deploy import _check_port, _merged

YAML = Path(__file__).parents[2] / "serve" / "digits.yaml"


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Location:
    storage = finished_run(tmp_path_factory.mktemp("storage"))
    publish_run(storage, "run", "digits", verify=check_parity, alias="production")
    return storage


def planned(folder: Path, storage: Location, *applications: dict[str, Any], front: bool = False) -> Plan:
    shipped = yaml.safe_load(YAML.read_text())["applications"]
    config = {"applications": [*(shipped[:1] if front else []), *(applications or shipped[1:])]}
    (folder / "serve.yaml").write_text(yaml.safe_dump(config))
    return read_plan(folder / "serve.yaml", storage=storage.url)


def running(*applications: dict[str, Any], status: str = "RUNNING") -> dict[str, Any]:
    """Serve's details of a cluster with these applications."""
    rows = {row["name"]: {"name": row["name"], "status": status, "deployed_app_config": row} for row in applications}
    options = {"host": "127.0.0.1", "port": 8000}
    return {"applications": rows, "http_options": options, "proxy_location": "EveryNode"}


def sent(plan: Plan, details: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in _merged(plan, details)["applications"]}


OTHER = {"name": "other", "route_prefix": "/other", "import_path": "other:app"}
FRONT = {"name": "front", "import_path": "stoker_serve.app:front", "args": {"origins": ["*"], "attempt": 0}}


def test_other_applications_are_sent_again_as_they_are_with_serves_own_options(
    tmp_path: Path, storage: Location
) -> None:
    plan = planned(tmp_path, storage)
    config = _merged(plan, running(OTHER))
    assert [row["name"] for row in config["applications"]] == ["other", "front", "digits"]
    assert config["applications"][0] == OTHER
    assert config["proxy_location"] == "EveryNode"


def test_a_front_that_runs_stays_unless_the_yaml_has_one(tmp_path: Path, storage: Location) -> None:
    assert sent(planned(tmp_path, storage), running(FRONT))["front"] == FRONT
    assert sent(planned(tmp_path, storage, front=True), running(FRONT))["front"]["args"]["origins"] == []
    assert "front" in sent(planned(tmp_path, storage), running())


def test_an_application_of_others_without_args_is_sent(tmp_path: Path, storage: Location) -> None:
    ours = yaml.safe_load(YAML.read_text())["applications"][1]
    assert sent(planned(tmp_path, storage, ours, OTHER), running(OTHER))["other"] == OTHER


@pytest.mark.parametrize(
    ("status", "attempt"), [("RUNNING", 3), ("DEPLOY_FAILED", 4), ("UNHEALTHY", 4), ("DEPLOYING", 3)]
)
def test_what_failed_is_sent_as_something_new_and_what_runs_is_not(
    tmp_path: Path, storage: Location, status: str, attempt: int
) -> None:
    plan = planned(tmp_path, storage)
    before = [{**row, "args": {**row["args"], "attempt": 3}} for row in plan.applications]
    found = sent(plan, running(*before, status=status))
    assert found["digits"]["args"]["attempt"] == attempt


def test_an_application_that_could_not_be_sent_again_is_not_lost(tmp_path: Path, storage: Location) -> None:
    details = running(OTHER)
    details["applications"]["other"]["deployed_app_config"] = None
    with pytest.raises(ClusterError, match="'other' was not deployed by a config, and deploying another would remove"):
        _merged(planned(tmp_path, storage), details)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"host": "127.0.0.1", "port": 9}, "listens on port 9, not 8000; give --port 9"),
        ({"host": "0.0.0.0", "port": 8000}, "listens on host 0.0.0.0, not 127.0.0.1"),
    ],
)
def test_a_serve_that_listens_elsewhere_is_told(
    tmp_path: Path, storage: Location, options: dict[str, Any], line: str
) -> None:
    with pytest.raises(ClusterError, match=line):
        _check_port(planned(tmp_path, storage), {"http_options": options}, "http://127.0.0.1:8265")


def test_what_a_cluster_said_of_itself_pins_nothing_and_names_need_no_registry(
    tmp_path: Path, storage: Location
) -> None:
    ours = yaml.safe_load(YAML.read_text())["applications"][1]
    ours["args"] |= {"version": "letters@2", "attempt": 7}
    plan = planned(tmp_path, storage, ours)
    assert (plan.models[0].version, plan.models[0].attempt) == ("digits@1", 0)
    assert read_names(tmp_path / "serve.yaml", models=["gone@9"]) == ["gone"]
    assert read_names(tmp_path / "serve.yaml") == ["digits"]
