"""stoker init: a project that works as it is, and copies of what comes with stoker."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from stoker.bundled import bundled_file, bundled_files
from stoker.cli import main
from stoker.recipe import read_recipe

CHECKOUT = Path(__file__).parents[2]


def test_a_project_has_a_valid_recipe_a_serve_config_and_a_readme(tmp_path: Path) -> None:
    main(["init", str(tmp_path / "My Photos")])
    project = tmp_path / "My Photos"
    assert {path.name for path in project.iterdir()} == {".gitignore", "README.md", "recipe.yaml", "serve.yaml"}
    recipe = read_recipe(project / "recipe.yaml")
    assert (recipe.name, recipe.data.url) == ("my-photos", "s3://stoker/datasets/my-photos")
    front, model = yaml.safe_load((project / "serve.yaml").read_text())["applications"]
    assert front["name"] == "front"
    assert model["args"]["model"] == "my-photos@production"
    assert (model["name"], model["route_prefix"]) == ("my-photos", "/v1/models/my-photos")
    readme = (project / "README.md").read_text()
    assert len(readme.splitlines()) <= 10
    assert "NAME" not in readme + (project / "recipe.yaml").read_text()


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("123", "123"),
        ("true", "true"),
        ("2026-11-26", "2026-11-26"),
        ("1e3", "1e3"),
        ("off", "off"),
        ("nothing", "nothing"),
        ("front", "front-model"),
        ("x" * 150, "x" * 100),
        ("a" * 99 + "-b", "a" * 99),
    ],
)
def test_any_folders_name_makes_a_valid_name(tmp_path: Path, folder: str, name: str) -> None:
    main(["init", str(tmp_path / folder)])
    assert read_recipe(tmp_path / folder / "recipe.yaml").name == name
    _, model = yaml.safe_load((tmp_path / folder / "serve.yaml").read_text())["applications"]
    assert model["args"]["model"] == f"{name}@production"
    assert (model["name"], model["route_prefix"]) == (name, f"/v1/models/{name}")


def test_the_next_command_can_be_pasted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["init", str(tmp_path / "my photos")])
    assert f"next: cd '{tmp_path}/my photos', and" in capsys.readouterr().out


def test_a_cluster_file_that_needs_a_checkout_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["init", str(tmp_path / "a"), "--with", "cluster/aws.yaml", "--with", "recipes/digits.yaml"])
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert notes == ["note: cluster/aws.yaml copies folders of a checkout of stoker to the nodes; type ray up in one"]
    assert "copy of this file elsewhere" in (tmp_path / "a" / "cluster" / "aws.yaml").read_text()


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(SystemExit) as stopped:
        main(["init", str(tmp_path)])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == f"error: {tmp_path}: the folder is not empty; choose another\n"
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    main(["init", str(tmp_path)])
    assert (tmp_path / "recipe.yaml").is_file()


def test_bundled_files_are_listed_and_copied_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["init", "--list"])
    names = capsys.readouterr().out.split()
    assert names == list(bundled_files())
    extra = [option for name in names for option in ("--with", name)]
    main(["init", str(tmp_path / "all"), *extra])
    for name in names:
        assert (tmp_path / "all" / name).read_bytes() == bundled_file(name).read_bytes()


def test_all_recipes_serve_configs_and_cluster_files_are_bundled() -> None:
    places = {"recipes": "jobs/recipes", "serve": "serve", "cluster": "cluster"}
    found = {
        f"{kind}/{path.name}"
        for kind, folder in places.items()
        for path in (CHECKOUT / folder).iterdir()
        if path.suffix in {".yaml", ".sh", ".txt"}
    }
    assert set(bundled_files()) == found
    assert {"cluster/environment.sh", "recipes/digits.yaml", "serve/digits.yaml"} <= found


@pytest.mark.parametrize("name", ["recipes/digts.yaml", "digits.yaml", "serve/../pyproject.toml", "serve/app.py"])
def test_an_unknown_file_is_refused_before_anything_is_written(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["init", str(tmp_path / "new"), "--with", name])
    assert capsys.readouterr().err.startswith(f"error: {name}: unknown file; stoker init --list")
    assert not (tmp_path / "new").exists()
