"""The completion script, run by the shells that it is for."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from stoker.cli.commands import COMMANDS
from stoker.cli.completion import completion_script, recipe_keys


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "stoker.sh"
    path.write_text(completion_script())
    return path


def completed(script: Path, *words: str) -> set[str]:
    """What bash offers for the last of ``words``."""
    program = (
        f"set -u; source {shlex.quote(str(script))}; COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}; "
        '_stoker; printf "%s\\n" ${COMPREPLY[@]+"${COMPREPLY[@]}"}'
    )
    done = subprocess.run(["bash", "-c", program], check=True, text=True, capture_output=True, timeout=30)
    assert done.stderr == ""
    return set(done.stdout.split())


def test_commands_and_their_options_complete(script: Path) -> None:
    assert completed(script, "stoker", "") == {*COMMANDS, "--help", "--version"}
    assert completed(script, "stoker", "e") == {"environment", "estimate", "evaluate"}
    assert completed(script, "stoker", "publish", "--") == {"--help", "--alias", "--storage", "--debug"}
    assert completed(script, "stoker", "models", "r") == {"rollback"}


def test_an_options_choices_complete(script: Path) -> None:
    assert completed(script, "stoker", "prepare", "--on-bad", "") == {"fail", "skip"}


def test_keys_of_a_recipe_complete_after_the_recipe_also_in_a_submission(script: Path) -> None:
    expected = {"schedule.epochs="}
    assert completed(script, "stoker", "train", "recipe.yaml", "schedule.ep") == expected
    assert completed(script, "stoker", "submit", "--no-wait", "train", "recipe.yaml", "schedule.ep") == expected
    assert completed(script, "stoker", "train", "schedule.ep") == set()  # the recipe's file comes first
    assert completed(script, "stoker", "publish", "run", "schedule.ep") == set()


def test_an_action_is_completed_once(script: Path) -> None:
    offered = completed(script, "stoker", "models", "alias", "")
    assert "--json" in offered
    assert not offered & {"list", "alias", "rollback", "delete"}
    assert completed(script, "stoker", "models", "--json", "r") == {"rollback"}


@pytest.mark.parametrize(
    "words",
    [
        ("train", "r.yaml", "optimizer.name", "=", "s"),  # as bash breaks optimizer.name=s
        ("train", "r.yaml", "optimizer.name", "="),
        ("submit", "train", "r.yaml", "optimizer.name", "=", "s"),
        ("publish", "a", "b", "--alias", "=", ""),
    ],
)
def test_no_key_or_option_is_offered_as_a_value(script: Path, words: tuple[str, ...]) -> None:
    assert completed(script, "stoker", *words) == set()


def test_an_options_choices_complete_after_an_equals_sign_too(script: Path) -> None:
    assert completed(script, "stoker", "prepare", "--on-bad", "=") == {"fail", "skip"}
    assert completed(script, "stoker", "prepare", "--on-bad", "=", "s") == {"skip"}


def test_jobs_complete_after_submit(script: Path) -> None:
    assert {"train", "prepare", "--address"} <= completed(script, "stoker", "submit", "")
    assert "models" not in completed(script, "stoker", "submit", "")


def test_every_key_with_a_value_is_known() -> None:
    keys = recipe_keys()
    assert {"name", "data.url", "optimizer.lr", "data.augment.scale", "workers.gpus"} <= set(keys)
    assert "optimizer" not in keys


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_defines_the_completion(script: Path) -> None:
    program = f"autoload -U +X compinit && compinit -u; autoload -U +X bashcompinit && bashcompinit; source {script}"
    done = subprocess.run(
        ["zsh", "-fc", f"{program}; print $_comps[stoker]"], check=True, text=True, capture_output=True, timeout=30
    )
    assert "_stoker" in done.stdout
