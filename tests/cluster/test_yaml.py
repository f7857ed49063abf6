"""The cluster files: what Ray's own schema and Ray's own preparation say to them, and what they promise."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from stoker.embedded import Settings
from stoker.embedded.processes import wait_until

CHECKOUT = Path(__file__).resolve().parents[2]
CLUSTER = CHECKOUT / "cluster"
HOSTS = ("onprem.yaml", "aws.yaml")


def read(name: str) -> dict[str, Any]:
    found = yaml.safe_load((CLUSTER / name).read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


@pytest.fixture(params=HOSTS)
def config(request: pytest.FixtureRequest) -> dict[str, Any]:
    return read(request.param)


def test_local_yaml_says_what_the_defaults_are() -> None:
    local = Settings.read(CLUSTER / "local.yaml")
    assert local.model_copy(update={"environment": {}}) == Settings.model_validate({})
    assert set(read("local.yaml")) == set(Settings.model_fields)
    assert local.environment["RAY_CHDIR_TO_TRIAL_DIR"] == "0"


def test_it_fits_the_schema_that_ray_ships(config: dict[str, Any]) -> None:
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(config, schema)


def test_ray_prepares_it_without_complaint(config: dict[str, Any]) -> None:
    prepared = prepare_config(config)
    validate_config(prepared)
    assert prepared["head_node_type"] in prepared["available_node_types"]


def test_all_hosts_are_kept_on_premise() -> None:
    (node_type,) = prepare_config(read("onprem.yaml"))["available_node_types"].values()
    hosts = len(read("onprem.yaml")["provider"]["worker_ips"])
    assert (node_type["min_workers"], node_type["max_workers"]) == (hosts, hosts)
    assert any(
        "RAY_enable_autoscaler_v2=0 ray start --head" in line for line in read("onprem.yaml")["head_start_ray_commands"]
    )


def test_gpu_nodes_come_and_go_and_some_are_spot() -> None:
    types = prepare_config(read("aws.yaml"))["available_node_types"]
    gpus = {name: node for name, node in types.items() if node["resources"].get("GPU")}
    assert {node["node_config"]["InstanceType"] for node in gpus.values()} == {"g5.12xlarge", "p4d.24xlarge"}
    assert all(node["min_workers"] == 0 < node["max_workers"] for node in gpus.values())
    spot = [
        node for node in gpus.values() if node["node_config"].get("InstanceMarketOptions") == {"MarketType": "spot"}
    ]
    assert spot
    assert all(node["node_config"]["IamInstanceProfile"] == {"Name": "stoker-node"} for node in types.values())
    assert types["head"]["max_workers"] == 0
    assert "InstanceMarketOptions" not in types["head"]["node_config"]


def test_what_is_copied_exists_in_the_checkout(config: dict[str, Any]) -> None:
    copied = dict(config["file_mounts"])
    assert copied.pop("~/.ray/auth_token") == "~/.ray/auth_token"
    assert copied.pop("~/.stoker/api-keys") == "~/.stoker/api-keys"
    assert any(line.endswith("chmod 600 ~/.ray/auth_token ~/.stoker/api-keys") for line in config["setup_commands"])
    for on_node, here in copied.items():
        assert on_node == f"~/stoker/{here}"
        assert (CHECKOUT / here).exists()


def test_every_start_has_the_token_mode_and_keeps_the_dashboard_inside(config: dict[str, Any]) -> None:
    starts = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    assert all(line.startswith(". ~/stoker/cluster/environment.sh; ") for line in starts)
    begun = [line for line in starts if "ray start" in line]
    assert len(begun) == 2
    assert all("--disable-usage-stats" in line for line in begun)
    assert "--dashboard-host=127.0.0.1" in begun[0]
    assert not any("0.0.0.0" in line for line in starts)


def test_the_watcher_of_spot_notices_is_started_and_ends_no_shell_of_its_own(tmp_path: Path) -> None:
    """As Ray runs the lines: each in a shell whose command line is the line."""
    (tmp_path / "stoker/cluster").mkdir(parents=True)
    (tmp_path / "stoker/cluster/environment.sh").write_text("")
    stoker = tmp_path / "stoker-venv/bin/stoker"
    stoker.parent.mkdir(parents=True)
    stoker.write_text('#!/bin/sh\necho "started $*"\n')
    stoker.chmod(0o755)
    log = tmp_path / "watch-spot.log"
    lines = [line for line in read("aws.yaml")["worker_start_ray_commands"] if "watch-spo" in line]
    assert len(lines) == 2
    for line in lines:
        # a pattern of this test's own: no other watcher of this machine is ended
        run = line.replace("/tmp/ray/watch-spot.log", str(log)).replace(
            "stoker watch-spo[t]", f"{tmp_path} watch-spo[t]"
        )
        shell = ["bash", "-c", f"true; ({run})"]
        done = subprocess.run(shell, env={"HOME": str(tmp_path), "PATH": os.environ["PATH"]}, timeout=30, check=False)
        assert done.returncode == 0, line
    wait_until(lambda: log.exists() and log.read_text() == "started watch-spot\n", "the watcher", timeout_s=20, log=log)


def test_no_secret_stands_in_it(config: dict[str, Any]) -> None:
    text = yaml.safe_dump(config)
    assert "AWS_SECRET_ACCESS_KEY" not in text
    assert "RAY_AUTH_TOKEN=" not in text


def test_every_node_reads_the_api_keys_that_are_copied_to_it_or_those_of_its_site(tmp_path: Path) -> None:
    shell = ["sh", "-euc", f'. "{CLUSTER}/environment.sh"; echo "$STOKER_API_KEY_FILE"']
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}

    def named() -> str:
        return subprocess.run(shell, env=environment, capture_output=True, text=True, timeout=30, check=True).stdout

    for name in ("onprem.yaml", "aws.yaml"):
        (on_node,) = [path for path in read(name)["file_mounts"] if path.startswith("~/.stoker/")]
        assert named() == f"{tmp_path}{on_node.removeprefix('~')}\n"
    (tmp_path / "stoker-site.sh").write_text("export STOKER_API_KEY_FILE=s3://bucket/api-keys\n")
    assert named() == "s3://bucket/api-keys\n"


def test_the_environment_of_a_node_is_a_shell_script_that_works(tmp_path: Path) -> None:
    (tmp_path / "stoker-site.sh").write_text("export AWS_ENDPOINT_URL=https://s3.example.org\n")
    shell = ["sh", "-euc", f'. "{CLUSTER}/environment.sh"; env']
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    done = subprocess.run(shell, env=environment, capture_output=True, text=True, timeout=30, check=True)
    found = dict(line.split("=", 1) for line in done.stdout.splitlines())
    assert found["RAY_AUTH_MODE"] == "token"
    assert found["RAY_USAGE_STATS_ENABLED"] == "0"
    assert found["RAY_JOB_STOP_SIGNAL"] == "SIGINT"
    assert found["PATH"].startswith(f"{tmp_path}/stoker-venv/bin:")
    assert found["AWS_ENDPOINT_URL"] == "https://s3.example.org"
    assert set(found) >= set(Settings.read(CLUSTER / "local.yaml").environment)


def test_every_node_serves_as_a_single_machine_does() -> None:
    """The endpoint's variables in environment.sh are those of ``stoker up``, but for paths and ports of one machine."""
    from stoker.embedded.serving import serve_environment

    here = serve_environment(Path("/folder"))
    text = (CLUSTER / "environment.sh").read_text(encoding="utf-8")
    there = {
        name: value.strip('"') for name, value in re.findall(r"^export (RAY_(?:SERVE_|worker_)\w+)=(.*)$", text, re.M)
    }
    own = {name for name, value in here.items() if "/" in value or name.endswith(("_PORT", "_NBTHREAD"))}
    assert there["RAY_SERVE_HAPROXY_BINARY_PATH"].endswith("/bin/stoker-haproxy")
    places = {name for name, value in there.items() if "/" in value}
    assert places == {name for name, value in here.items() if "/" in value}
    assert all(there[name].startswith("$HOME/") for name in places)
    expected = {name: value for name, value in here.items() if name not in own}
    assert {name: value for name, value in there.items() if name not in places} == expected
