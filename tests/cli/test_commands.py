"""The command stoker: its table, its errors, and what it imports."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from stoker import __version__
from stoker.cli import main
from stoker.cli.commands import COMMANDS, JOBS, Command

CHECKOUT = Path(__file__).parents[2]
HEAVY = {"ray", "torch", "pydantic", "fsspec", "numpy", "botocore", "yaml"}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "stoker", *arguments]
    return subprocess.run(command, check=False, text=True, capture_output=True, timeout=120)


def test_help_imports_no_library() -> None:
    program = (
        "import sys; from stoker.cli import main; main(['--help'])\n"
        "print('imported', *sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, text=True, capture_output=True, timeout=60)
    imported = set(done.stdout.splitlines()[-1].split())
    assert "stoker" in imported
    assert not imported & HEAVY


def test_help_has_a_line_for_each_command(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    for command in COMMANDS.values():
        assert f"  {command.name:12} {command.help}" in lines


@pytest.mark.parametrize("command", COMMANDS.values(), ids=lambda command: command.name)
def test_a_command_has_help_arguments_and_something_to_run(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    module = command.load()
    assert callable(module.run)
    with pytest.raises(SystemExit) as stopped:
        command.parser().parse_args(["--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: stoker {command.name} ")
    assert str(module.__doc__).splitlines()[0] in shown


def test_each_job_is_a_script_that_runs_the_same_command() -> None:
    scripts = {path.stem: path.read_text() for path in (CHECKOUT / "jobs").glob("*.py")}
    assert set(scripts) == set(JOBS)
    for name, text in scripts.items():
        assert f'main(["{name}", *sys.argv[1:]])' in text
        assert len(text.splitlines()) < 10


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    assert capsys.readouterr().out == f"stoker {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("trian",), "error: stoker trian: unknown command; did you mean train?"),
        (("zzzz",), "error: stoker zzzz: unknown command; see stoker --help"),
        (
            ("train",),
            "error: stoker train: the following arguments are required: RECIPE; see stoker train --help",
        ),
        (("publish", "a", "b", "--alis", "c"), "error: stoker publish: unrecognized arguments: --alis c; "),
        (("init",), "error: stoker init: "),
    ],
)
def test_a_usage_error_is_one_line_and_status_2(arguments: tuple[str, ...], line: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(line)
    assert len(done.stderr.splitlines()) == 1


def test_debug_shows_the_traceback_of_an_error() -> None:
    done = run("train", "nowhere.yaml", "--debug")
    assert "Traceback" in done.stderr
    assert "RecipeError" in done.stderr


def test_every_package_folder_is_in_the_wheel() -> None:
    root = CHECKOUT / "platform" / "stoker"
    folders = {path.parent for path in root.rglob("*.py")}
    packages = {".".join(("stoker", *folder.relative_to(root).parts)) for folder in folders}
    listed = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert {name for name in listed if name.partition(".")[0] == "stoker"} == packages


def test_make_down_and_clean_need_no_environment(tmp_path: Path) -> None:
    shutil.copy(CHECKOUT / "Makefile", tmp_path)
    (tmp_path / ".stoker").mkdir()
    done = subprocess.run(["make", "-s", "clean"], cwd=tmp_path, check=True, text=True, capture_output=True, timeout=60)
    assert done.stdout == "down: no .venv here, so nothing to stop\n"
    assert [path.name for path in tmp_path.iterdir()] == ["Makefile"]


def test_no_commands_help_waits_for_torch_or_ray() -> None:
    code = (
        "import sys\n"
        "from stoker.cli.commands import COMMANDS\n"
        "for command in COMMANDS.values(): command.parser().format_help()\n"
        "sys.exit(', '.join({'torch', 'torchvision', 'ray'} & sys.modules.keys()) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
