"""The reference of the commands, from their own ``--help``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
SCRIPTS = {
    **{name: [f"jobs/{name}.py"] for name in ("prepare", "estimate", "train", "evaluate", "publish")},
    "deploy": ["-m", "stoker_serve.deploy"],
    "quickstart": ["-m", "stoker.embedded.quickstart"],
}
"""what stands for a subcommand in a checkout without the command"""
COMMAND = ["-m", "stoker"]
LINE = re.compile(r"^ {2,6}([a-z]+) {2,}\S", re.MULTILINE)
HEAD = """# Commands

Every subcommand of `stoker` with its arguments, as `stoker COMMAND --help` prints them. Errors are one line and exit
status 2; `--debug` with any command adds the debug log and the traceback ([errors](errors.md)).

Subcommands that run on a cluster are sent there by `stoker submit COMMAND …`, and each has a script in `jobs/` for
Ray's own `ray job submit`.

"""


def commands_page() -> str:
    """The page in Markdown: what ``stoker --help`` prints, then a section for each subcommand that it lists."""
    if (CHECKOUT / "platform" / "stoker" / "cli").is_dir():
        overview = help_of(COMMAND)
        programs = {name: [*COMMAND, name] for name in LINE.findall(overview)}
    else:
        overview, programs = "", SCRIPTS
    with ThreadPoolExecutor(2) as pool:
        texts = dict(zip(programs, pool.map(help_of, programs.values()), strict=True))
    sections = [f"## stoker {name}\n\n```text\n{text.strip()}\n```\n" for name, text in texts.items()]
    return HEAD + (f"```text\n{overview.strip()}\n```\n\n" if overview else "") + "\n".join(sections)


def help_of(program: list[str]) -> str:
    """What ``program --help`` prints, 100 columns wide.

    Raises:
        RuntimeError: it fails.
    """
    done = subprocess.run(
        [sys.executable, *program, "--help"],
        cwd=CHECKOUT,
        env=os.environ | {"COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(program)} --help exits with {done.returncode}: {done.stderr.strip()[-300:]}")
    return done.stdout
