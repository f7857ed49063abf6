"""The reference of the commands, from their own ``--help``."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

CHECKOUT = Path(__file__).parents[2]
COMMAND = ["-m", "stoker"]
COLUMNS = "100"
LINE = re.compile(r"^ {2,6}([a-z]+) {2,}\S", re.MULTILINE)
HEAD = """# Commands

Every subcommand of `stoker` with its arguments, as `stoker COMMAND --help` prints them. Errors are one line and exit
status 2; `--debug` with any command adds the debug log and the traceback ([errors](errors.md)).

Subcommands that run on a cluster are sent there by `stoker submit COMMAND …`, and each has a script in `jobs/` for
Ray's own `ray job submit`.

"""


def commands_page() -> str:
    """The page in Markdown: what ``stoker --help`` prints, then a section for each subcommand that it lists."""
    overview, texts = help_of(COMMAND), {}
    for name in LINE.findall(overview):
        texts |= helps(_parser(name))
    sections = [f"## {name}\n\n```text\n{text.strip()}\n```\n" for name, text in texts.items()]
    return HEAD + f"```text\n{overview.strip()}\n```\n\n" + "\n".join(sections)


def _parser(name: str) -> argparse.ArgumentParser:
    commands = importlib.import_module("stoker.cli.commands").COMMANDS
    parser: argparse.ArgumentParser = commands[name].parser()
    return parser


def helps(parser: argparse.ArgumentParser) -> dict[str, str]:
    """The help of ``parser`` and of the parsers below it, by their programs' names."""
    with mock.patch.dict(os.environ, COLUMNS=COLUMNS):
        found = {parser.prog: parser.format_help()}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                found |= helps(below)
    return found


def help_of(program: list[str]) -> str:
    """What ``program --help`` prints, 100 columns wide.

    Raises:
        RuntimeError: it fails.
    """
    done = subprocess.run(
        [sys.executable, *program, "--help"],
        cwd=CHECKOUT,
        env=os.environ | {"COLUMNS": COLUMNS},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(program)} --help exits with {done.returncode}: {done.stderr.strip()[-300:]}")
    return done.stdout
