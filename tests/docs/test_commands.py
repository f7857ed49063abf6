"""Every command line in the docs is run by a test, or the page says that it is not.

A line of ``stoker`` is also parsed by the subcommand's own parser, so an option that was renamed fails here.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pages import CHECKOUT, MARK, PAGES, Command, commands_in, commands_of
from stoker.errors import StokerError
from stoker.storage import locate

LINE, PREPARE, CLI = "tests/integration/test_line.py", "tests/dataset/prepare/test_docs.py", "tests/cli"
RUN_BY = {
    # how a command line begins: the file of the test that runs it, and what that file calls it
    "stoker prepare": (PREPARE, "stoker prepare"),
    "stoker submit prepare": (PREPARE, "stoker submit"),
    "ray job submit --working-dir . -- python jobs/prepare.py": (PREPARE, "ray job submit"),
    "python -m stoker.embedded.digits": (PREPARE, "stoker.embedded.digits"),
    "stoker train": (LINE, "jobs/train.py"),
    "stoker submit train": (LINE, "jobs/train.py"),
    "ray job submit --working-dir . -- python jobs/train.py": (LINE, "jobs/train.py"),
    "stoker evaluate": (LINE, "jobs/evaluate.py"),
    "stoker publish": (LINE, "jobs/publish.py"),
    "stoker deploy": (LINE, "stoker_serve.deploy"),
    "stoker estimate": ("tests/cli/test_estimate.py", "estimate"),
    "stoker up": ("tests/embedded/test_cluster.py", "start"),
    "stoker down": ("tests/embedded/test_cluster.py", "stop"),
    "stoker status": (CLI, "status"),
    "stoker environment": (CLI, "environment"),
    "stoker init": (CLI, "init"),
    "stoker models": (CLI, "models"),
    "stoker keys": (CLI, "keys"),
    "stoker models import": ("tests/predict/test_importing.py", '"models", "import"'),
    "stoker demo": ("tests/integration/test_demo.py", '"demo"'),
    "stoker completion": (CLI, "completion"),
    "make install": (".ci/run", "make test"),
    "make test": (".ci/run", "make test"),
    "make lint": ("Makefile", "$(MAKE) --no-print-directory lint"),
    "make docs": ("Makefile", "mkdocs build --strict"),
    "make bench-data": ("tests/bench/test_bench_data.py", "bench.data"),
    "make bench-order": ("tests/bench/test_bench_order.py", "bench.order"),
    "make bench-serve": ("tests/bench/test_bench_serve.py", "bench.serve"),
    "make bench-train": ("tests/bench/test_bench_train.py", "bench.train"),
    "make mutants": ("tests/mutants/test_mutants.py", "main("),
    "python -c": ("tests/docs/test_commands.py", "python -c"),
}
PLUMBING = ("cd", "export", ".")
"""of the shell, around the commands that matter"""
PLACEHOLDER = re.compile(r"[…\[\]<>|]|\b[A-Z]{2,}\b")
PORT = "${STOKER_SERVE_URL##*:}"
"""as a shell reads it: the part of the URL after its last colon"""
ALL = [command for page in PAGES for command in commands_of(page)]


def inner(text: str) -> str:
    """The command that ``eval "$(…)"`` or a pipe into a shell carries."""
    found = re.fullmatch(r'eval "\$\((.*)\)"', text)
    return found[1] if found else text


def run_by(text: str) -> tuple[str, str] | None:
    begun = [start for start in RUN_BY if f"{text} ".startswith(f"{start} ")]
    return RUN_BY[max(begun, key=len)] if begun else None


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (CHECKOUT / "Makefile").read_text(), re.MULTILINE))


def test_the_pages_have_commands() -> None:
    assert len(PAGES) > 25
    assert len(ALL) > 60


@pytest.mark.parametrize("command", [c for c in ALL if not c.is_inline], ids=str)
def test_a_command_of_a_block_is_run_by_a_test_or_marked(command: Command) -> None:
    text = inner(command.text)
    if command.is_marked or text.split()[0] in PLUMBING:
        return
    test = run_by(text)
    assert test, f"{command.page}: no test runs {text!r}; add it to RUN_BY, or write '{MARK}: why' in a comment above"


@pytest.mark.parametrize(("path", "name"), sorted(set(RUN_BY.values())))
def test_what_the_table_names_is_there(path: str, name: str) -> None:
    place = CHECKOUT / path
    files = sorted(place.rglob("test_*.py")) if place.is_dir() else [place]
    assert any(name in file.read_text(encoding="utf-8") for file in files), f"{path} does not run {name}"


@pytest.mark.parametrize("command", [c for c in ALL if inner(c.text).startswith("stoker ")], ids=str)
def test_the_arguments_of_a_subcommand_are_accepted(command: Command) -> None:
    from stoker.cli.commands import COMMANDS

    words = shlex.split(inner(command.text).replace(PORT, "8000"))[1:]
    if words[0].startswith("-") or PLACEHOLDER.fullmatch(words[0]):
        return
    for name in words[0].split("|"):
        assert name in COMMANDS, f"{command.page}: stoker has no {name}"
    if command.is_inline and (PLACEHOLDER.search(command.text) or len(words) < 2):
        known = COMMANDS[words[0].split("|")[0]].parser().format_help()
        assert set(re.findall(r"--[a-z-]+", command.text)) <= set(re.findall(r"--[a-z-]+", known)) | {"--help"}
        return
    try:
        COMMANDS[words[0]].parser().parse_args(words[1:])
        if words[0] == "submit":
            COMMANDS[words[1]].parser().parse_args(words[2:])
    except (StokerError, SystemExit) as error:
        pytest.fail(f"{command.page}: {command.text!r} is refused: {error}")


@pytest.mark.parametrize("command", [c for c in ALL if c.text.startswith("make ") and not c.is_marked], ids=str)
def test_a_target_is_in_the_makefile(command: Command) -> None:
    assert command.text.split()[1] in targets()


@pytest.mark.parametrize("command", [c for c in ALL if c.text.startswith("python -c ")], ids=str)
def test_a_line_of_python_runs(command: Command, tmp_path: Path) -> None:
    (locate(tmp_path / "runs" / "pets") / "report.html").write(b"<!doctype html>")
    words = shlex.split(command.text.replace("s3://stoker", str(tmp_path)))
    done = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    if "report.html" in command.text:
        assert (tmp_path / "report.html").read_bytes() == b"<!doctype html>"
    else:
        assert len(done.stdout) > 500


@pytest.mark.parametrize(
    "command",
    [c for c in ALL if c.is_inline and c.text.split()[0] in {"ray", "serve", "curl", "torchrun", "pip"}],
    ids=str,
)
def test_a_command_of_others_within_the_text_is_run_or_marked(command: Command) -> None:
    is_mention = command.text in {"ray job submit", "ray job stop", "ray start", "ray stop --force", "ray up"}
    is_install = command.text.startswith("pip install ")
    assert command.is_marked or is_mention or is_install or run_by(command.text), command


def test_a_command_without_a_test_is_found() -> None:
    page = "```sh\nfrob --all  # now\n```\n\n<!-- not run here: needs hosts -->\n```sh\nray up x\n```\n"
    assert [(c.text, c.is_marked) for c in commands_in("page", page)] == [("frob --all", False), ("ray up x", True)]
    assert run_by("frob --all") is None
    assert run_by("stoker trainer") is None


def test_a_line_that_continues_is_one_command() -> None:
    found = commands_in("page", "```console\n$ make \\\n   lint\n# nothing\n```\nand `make docs` (not run here)")
    assert [(c.text, c.is_marked, c.is_inline) for c in found] == [
        ("make lint", False, False),
        ("make docs", True, True),
    ]


def test_readme_is_short_and_its_links_lead_somewhere() -> None:
    text = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    assert text.count("\n") <= 60
    for link in re.findall(r"\]\(([^)#]+)", text):
        assert (CHECKOUT / link).exists(), link


@pytest.mark.parametrize("page", [page for page in PAGES if not page.startswith("docs/benchmarks")])
def test_a_page_is_at_most_three_screens(page: str) -> None:
    assert Path(PAGES[page]).read_text(encoding="utf-8").count("\n") <= 160


def test_the_pages_that_the_code_names_exist() -> None:
    folders = ("platform", "serve", "jobs", "cluster", "tests")
    files = [file for folder in folders for file in (CHECKOUT / folder).rglob("*") if file.suffix in {".py", ".yaml"}]
    named = {(name, file) for file in files for name in re.findall(r"\bdocs/[\w/-]+\.md\b", file.read_text())}
    missing = {f"{file.relative_to(CHECKOUT)}: {name}" for name, file in named if not (CHECKOUT / name).exists()}
    assert missing == set()
