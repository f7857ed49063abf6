"""What docs/site generates from the code, and what it refuses."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pages import CHECKOUT
from stoker.recipe import json_schema

SITE = CHECKOUT / "docs" / "site"
sys.path.insert(0, str(SITE))

from commands_page import COMMAND, LINE, help_of, helps  # noqa: E402
from recipe_page import _default, _section, _type, recipe_page  # noqa: E402


def rows() -> dict[str, list[str]]:
    """The table rows of the recipe's page by ``section.key``."""
    found, section = {}, ""
    for line in recipe_page().splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ").replace("Top level", "")
        elif line.startswith(("| `", "| **`")):
            cells = [cell.strip() for cell in line.strip("|").split(" | ")]
            found[f"{section}.{cells[0].strip('`* ')}".lstrip(".")] = cells
    return found


def test_every_key_of_the_schema_is_on_the_page() -> None:
    schema = json_schema()
    keys = {*schema["properties"]}
    for name, definition in (
        ("Optimizer", "optimizer"),
        ("Data", "data"),
        ("Workers", "workers"),
        ("Wandb", "tracking.wandb"),
    ):
        keys |= {f"{definition}.{key}" for key in schema["$defs"][name]["properties"]}
    assert keys <= set(rows())


def test_a_row_has_type_bounds_default_and_description() -> None:
    found = rows()
    assert found["name"][0] == "**`name`**"
    assert found["gradient_clip"][1:3] == ["number > 0 or null", "none"]
    assert found["workers.max_failures"][1:3] == ["whole number ≥ -1", "`3`"]
    assert found["precision"][1:3] == ["`float32` or `bfloat16` or `float16`", "`float32`"]
    assert found["data.mean"][1:3] == ["list of 3 number", "`[0.485, 0.456, 0.406]`"]
    assert "torch.compile" in found["compile"][3]


@pytest.mark.parametrize(
    ("name", "sign"), [("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<")]
)
def test_a_bound_has_its_sign(name: str, sign: str) -> None:
    assert _type({"type": "number", name: 2.5}, {}) == f"number {sign} 2.5"


def test_a_key_without_a_default_has_none_and_a_null_is_said() -> None:
    assert (_default({}, None), _default({"default": None}, None), _default({"default": 0.5}, None)) == (
        "",
        "none",
        "`0.5`",
    )


def test_a_pipe_in_a_description_does_not_break_the_table() -> None:
    section = {"properties": {"a": {"type": "string", "description": "x | y"}}}
    assert "x \\| y" in _section("s", section, {})


def test_help_of_a_command_is_its_own() -> None:
    assert "--verify {sizes,full}" in help_of([*COMMAND, "prepare"]).replace("\n", " ")
    with pytest.raises(RuntimeError, match="exits with"):
        help_of([*COMMAND, "no-such-thing", "--no-such-option"])


def test_help_of_a_command_with_actions_has_theirs() -> None:
    parser = argparse.ArgumentParser(prog="stoker models")
    actions = parser.add_subparsers()
    actions.add_parser("alias").add_argument("--storage", help="x" * 60)
    found = helps(parser)
    assert list(found) == ["stoker models", "stoker models alias"]
    assert max(map(len, found["stoker models alias"].splitlines())) > 80


def test_subcommands_are_read_from_the_help() -> None:
    text = (
        "usage: stoker COMMAND\n\ncommands:\n  up           start\n  train        train a model\n\n  --debug      log\n"
    )
    assert LINE.findall(text) == ["up", "train"]


@pytest.mark.parametrize("broken", ["[x](nowhere.md)", "[x](quickstart.md#nowhere)"])
def test_a_broken_link_or_anchor_fails_the_build(broken: str, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    (docs / "site").mkdir(parents=True)
    (docs / "index.md").write_text(f"# A\n\n{broken}\n")
    (docs / "quickstart.md").write_text("# B\n")
    config = (SITE / "mkdocs.yml").read_text()
    config = config[: config.index("nav:")].replace("hooks:\n  - hooks.py\n", "")
    (docs / "site" / "mkdocs.yml").write_text(config)
    shutil.copytree(CHECKOUT / "docs" / "assets", docs / "assets")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(docs / "site" / "mkdocs.yml")]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "nowhere" in done.stderr
