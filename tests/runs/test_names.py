"""A run's name cannot lead out of ``runs/``, whichever way it comes in."""

from __future__ import annotations

from pathlib import Path

import pytest

from stoker.cli import main
from stoker.errors import RecipeError, RunError
from stoker.predict import check_parity
from stoker.recipe import parse_recipe
from stoker.registry import publish_run
from stoker.runs.folder import RunFolder
from stoker.storage import locate

OUT = ["../x", "/x", "a/../../b", "", ".", "..", "a/b", "a\n", "a\\b", "%2e%2e", "a" * 101]
RECIPE = """
storage: /data
data: {url: /data}
model: {name: digitsnet}
batch: {total: 8, micro: 8}
optimizer: {lr: 0.1}
schedule: {epochs: 1}
workers: {gpus: 0, cpus: 1}
"""


@pytest.mark.parametrize("name", OUT)
def test_a_run_folder_stays_where_runs_are(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunError) as caught:
        RunFolder(locate(tmp_path), name)
    assert str(caught.value).startswith(f"run name {name!r} is not valid; use letters, digits, dots, dashes and")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", OUT)
def test_a_recipe_has_no_such_name(name: str) -> None:
    with pytest.raises(RecipeError, match="name: ") as caught:
        parse_recipe(RECIPE, "run.yaml", [f"name={name!r}"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", OUT)
def test_nothing_is_published_from_outside(tmp_path: Path, name: str) -> None:
    for place in ("x", "b", "runs"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "recipe.yaml").write_text(f"name: run{RECIPE}")
    with pytest.raises(RunError, match=r"run name .* is not valid"):
        publish_run(locate(tmp_path / "above"), name, "digits", verify=check_parity)


@pytest.mark.parametrize("given", ["../x", "/x", "a/../../b", "", ".", "{root}/runs/../x", "{root}/runs/.."])
@pytest.mark.parametrize("command", ["publish", "evaluate"])
def test_a_command_refuses_it_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, given: str
) -> None:
    rest = ["digits"] if command == "publish" else ["--run"]
    arguments = [given.format(root=tmp_path), *rest, "--storage", str(tmp_path)]
    with pytest.raises(SystemExit) as stopped:
        main([command, *arguments])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a", "9", "digits-1", "A.b_c-d", "a" * 100])
def test_an_ordinary_name_is_taken(tmp_path: Path, name: str) -> None:
    assert RunFolder(locate(tmp_path), name).location == locate(tmp_path) / "runs" / name
    assert parse_recipe(RECIPE, "run.yaml", [f"name={name!r}"]).name == name
