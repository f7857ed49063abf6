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
    assert done.stdout == "down: no working .venv here, so nothing can be stopped from here\n"
    assert [path.name for path in tmp_path.iterdir()] == ["Makefile"]


def broken_environment(folder: Path) -> None:
    """A .venv whose Python is gone, with an install stamp that is newer than all it depends on."""
    for name in ("Makefile", "pyproject.toml", "cluster"):
        (shutil.copytree if (CHECKOUT / name).is_dir() else shutil.copy)(CHECKOUT / name, folder / name)
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "python").symlink_to("/nowhere/python3")
    (folder / ".venv" / "bin" / "stoker").write_text("#!/bin/sh\nexit 1\n")
    (folder / ".venv" / "bin" / "stoker").chmod(0o755)
    (folder / ".venv" / "mine.txt").touch()
    (folder / ".venv" / "installed").touch()


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", *arguments], cwd=folder, check=False, text=True, capture_output=True, timeout=60)


def test_make_clean_keeps_what_says_that_something_runs(tmp_path: Path) -> None:
    broken_environment(tmp_path)
    (tmp_path / ".stoker").mkdir()
    (tmp_path / ".stoker" / "state.json").write_text("{}")
    done = make(tmp_path, "-s", "clean")
    assert done.returncode == 2
    assert done.stdout.splitlines()[0] == "down: no working .venv here, so nothing can be stopped from here"
    assert "error: by .stoker/state.json something runs here" in done.stdout
    assert (tmp_path / ".stoker" / "state.json").exists()
    (tmp_path / ".stoker" / "state.json").unlink()
    assert make(tmp_path, "-s", "clean").returncode == 0
    assert not (tmp_path / ".venv").exists()


def test_make_install_notices_a_broken_environment_and_removes_only_what_it_made(tmp_path: Path) -> None:
    broken_environment(tmp_path)
    assert "pip install" in make(tmp_path, "--dry-run", "install").stdout
    python = tmp_path / "python"  # new enough, has ensurepip, and cannot make an environment
    python.write_text('#!/bin/sh\ntest "$1" = -c\n')
    python.chmod(0o755)
    done = make(tmp_path, "-s", "install", f"PYTHON={python}")
    assert (done.returncode, done.stdout) == (
        2,
        "error: cannot create the virtual environment .venv; see the lines above\n",
    )
    assert (tmp_path / ".venv" / "mine.txt").exists()
    shutil.rmtree(tmp_path / ".venv")
    python.write_text('#!/bin/sh\ntest "$1" = -c || { mkdir -p .venv; exit 1; }\n')
    assert make(tmp_path, "-s", "install", f"PYTHON={python}").returncode == 2
    assert not (tmp_path / ".venv").exists()
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to(sys.executable)
    (tmp_path / ".venv" / "installed").touch()
    assert "pip install" not in make(tmp_path, "--dry-run", "install").stdout


def test_a_log_level_that_is_none_is_refused_in_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "stoker", "--version"],
        env={"STOKER_LOG_LEVEL": "loud"},
        check=False,
        text=True,
        capture_output=True,
        timeout=60,
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert done.stderr.startswith("error: STOKER_LOG_LEVEL='LOUD' is not a log level; set one of CRITICAL, DEBUG, ")


def test_a_removed_current_folder_is_one_line(tmp_path: Path) -> None:
    command = f"mkdir gone; cd gone; rmdir ../gone; exec {sys.executable} -m stoker status"
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, check=False, text=True, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (
        2,
        "error: the current folder was removed; change to one that exists\n",
    )


@pytest.mark.parametrize("buffering", ["PYTHONUNBUFFERED=1", "PYTHONUNBUFFERED="])
@pytest.mark.parametrize("arguments", ["init --list", "--help", "train --help"])
def test_a_reader_that_has_closed_the_output_is_no_error(arguments: str, buffering: str) -> None:
    script = f"{{ {buffering} {sys.executable} -m stoker {arguments}; echo $? >&2; }} | true"
    done = subprocess.run(["sh", "-c", script], check=False, text=True, capture_output=True, timeout=60)
    assert done.stderr in {"141\n", "0\n"}  # 0: all was written before the reader went


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("--batch", "0"), ("--ranks", "0"), ("--ranks", "-1"), ("--batch", "1.5")),
        *(("--images-per-s", "0"), ("--images-per-s", "-5"), ("--images-per-s", "nan"), ("--bandwidth-mb-s", "0")),
        *(("--latency-ms", "-1"), ("--dollars-per-gb", "inf"), ("--dollars-per-million-requests", "x")),
    ],
)
def test_sizes_that_cannot_be_are_refused(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["estimate", "s3://nowhere/x", f"{option}={value}"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: stoker estimate: argument {option}: '{value}' is not a ")


def test_the_least_sizes_are_accepted() -> None:
    parser = COMMANDS["estimate"].parser()
    given = parser.parse_args(["x", "--batch=1", "--ranks=1", "--images-per-s=0.1", "--latency-ms=0"])
    assert (given.batch, given.ranks, given.images_per_s, given.latency_ms) == (1, 1, 0.1, 0)


def test_no_commands_help_waits_for_torch_or_ray() -> None:
    code = (
        "import sys\n"
        "from stoker.cli.commands import COMMANDS\n"
        "for command in COMMANDS.values(): command.parser().format_help()\n"
        "sys.exit(', '.join({'torch', 'torchvision', 'ray'} & sys.modules.keys()) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["demo", "quickstart"])
def test_without_the_extra_a_program_names_it_in_one_line(name: str, tmp_path: Path) -> None:
    code = f"import sys; sys.modules['httpx'] = None; from stoker.cli import main; main([{name!r}])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    line = "error: the package httpx is not here; pip install 'stoker[embedded]'\n"
    assert (done.returncode, done.stderr) == (2, line)
    assert list(tmp_path.iterdir()) == []
