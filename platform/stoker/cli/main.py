"""The entry point of ``stoker``: find the subcommand, import it, run it."""

from __future__ import annotations

import difflib
import sys

from stoker import __version__
from stoker.cli.commands import COMMANDS
from stoker.command import run_command
from stoker.errors import StokerError

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> None:
    """Run ``stoker`` with ``arguments`` (default: those of the process).

    Raises:
        SystemExit: with status 2 after an error of the user's, and with the job's status after ``stoker submit``.
    """
    run_command(_dispatch, arguments)


def _dispatch(arguments: list[str]) -> None:
    if not arguments or arguments[0] in {"-h", "--help", "help"}:
        sys.stdout.write(_usage())
        return
    if arguments[0] in {"-V", "--version"}:
        sys.stdout.write(f"stoker {__version__}\n")
        return
    name, *rest = arguments
    command = COMMANDS.get(name)
    if command is None:
        nearest = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
        hint = f"did you mean {nearest[0]}?" if nearest else "see stoker --help"
        raise StokerError(f"stoker {name}: unknown command; {hint}")
    command.load().run(command.parser().parse_args(rest))


def _usage() -> str:
    rows = "\n".join(f"  {command.name:12} {command.help}" for command in COMMANDS.values())
    return f"""usage: stoker COMMAND …

Streaming, distributed training and serving of image models on Ray.

commands:
{rows}

  stoker COMMAND --help   the arguments of a command
  stoker --version        the version
  --debug                 with any command: debug log, and a traceback for an error
"""
