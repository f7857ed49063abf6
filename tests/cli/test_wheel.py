"""The wheel in an environment of its own, in an empty folder outside the checkout."""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from driven import write_digits
from stoker.bundled import bundled_files
from stoker.embedded.processes import program

pytestmark = pytest.mark.long

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def stoker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program of a wheel that was built from a copy of the checkout; libraries are those of this Python."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("platform", "serve", "jobs", "cluster"):
        shutil.copytree(CHECKOUT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(CHECKOUT / name, source / name)
    uv = program("uv")
    build = [uv, "build", "--wheel", "--no-build-isolation", "--python", sys.executable, "-o", str(folder), str(source)]
    subprocess.run(build, check=True, capture_output=True, timeout=300)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv")
    python = folder / "venv" / "bin" / "python"
    (packages,) = (folder / "venv").glob("lib/python*/site-packages")
    (packages / "libraries.pth").write_text("\n".join(site.getsitepackages()))
    install = [uv, "pip", "install", "--no-deps", "--python", str(python), str(wheel)]
    subprocess.run(install, check=True, capture_output=True, timeout=300)
    return folder / "venv" / "bin" / "stoker"


def run(stoker: Path, folder: Path, *arguments: str) -> list[str]:
    programs = [str(stoker.parent), str(Path(sys.executable).parent), os.environ["PATH"]]
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_", "STOKER_"))}
    ports = {f"STOKER_PORT_{name}": "0" for name in ("S3", "GCS", "DASHBOARD", "SERVE")}
    done = subprocess.run(
        [str(stoker), *arguments],
        cwd=folder,
        env=ours | ports | {"PATH": os.pathsep.join(programs)},
        check=False,
        text=True,
        capture_output=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout.strip().splitlines()


def test_a_project_is_created_and_trained(stoker: Path, tmp_path: Path) -> None:
    assert run(stoker, tmp_path, "--help")[0] == "usage: stoker COMMAND …"
    assert run(stoker, tmp_path, "init", "--list") == list(bundled_files())
    run(stoker, tmp_path, "init", "photos")
    images = write_digits(tmp_path / "images", "01")
    run(stoker, tmp_path, "prepare", str(images), "data", "--jpeg", "original")
    places = (f"storage={tmp_path}/storage", f"data.url={tmp_path}/data")
    small = ("model.name=digitsnet", "data.image_size=32", "schedule.epochs=1", "schedule.warmup_epochs=0")
    last = run(stoker, tmp_path, "train", "photos/recipe.yaml", *places, *small, "workers.min=1", "workers.max=1")[-1]
    assert json.loads(last)["samples"] == 16


def test_store_and_cluster_go_up_and_down(stoker: Path, tmp_path: Path) -> None:
    try:
        lines = run(stoker, tmp_path, "up")
        assert lines[0] == "no model to serve yet: stoker quickstart trains and publishes a first one"
        assert f"(data: {tmp_path}/.stoker/store)" in lines[1]
        assert run(stoker, tmp_path, "status") == lines[1:]
    finally:
        lines = run(stoker, tmp_path, "down")
    assert lines[0].startswith("down: stopped ")
    assert lines[0] != "down: stopped 0 processes"
