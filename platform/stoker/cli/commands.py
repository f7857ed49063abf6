"""The table of subcommands. Adding one is a row here and a module in this folder."""

from __future__ import annotations

import argparse
import importlib
from dataclasses import dataclass
from types import ModuleType

from stoker.command import Parser

__all__ = ["COMMANDS", "JOBS", "Command"]


@dataclass(frozen=True)
class Command:
    """One subcommand: its name, its module below ``stoker.cli``, and its line in ``stoker --help``."""

    name: str
    module: str
    help: str
    is_job: bool = False
    """whether ``stoker submit`` can run it on a cluster"""

    def load(self) -> ModuleType:
        return importlib.import_module(f"stoker.cli.{self.module}")

    def parser(self) -> argparse.ArgumentParser:
        """The subcommand's parser, as ``stoker NAME --help`` prints it."""
        module = self.load()
        parser = Parser(
            prog=f"stoker {self.name}",
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(parser)
        return parser


COMMANDS = {
    command.name: command
    for command in (
        Command("up", "up", "start the object store, Ray cluster and endpoint on this machine"),
        Command("down", "down", "stop them; the data are kept"),
        Command("status", "status", "print what is running on this machine and where"),
        Command("environment", "environment", "print shell exports for clients of them (holds secrets)"),
        Command("quickstart", "quickstart", "run the whole line on real data, from images to an HTTP answer"),
        Command("init", "init", "create a project folder with a recipe and a Serve config"),
        Command("prepare", "prepare", "make a data set from labelled images", is_job=True),
        Command("estimate", "estimate", "estimate requests, bytes, time and cost of an epoch", is_job=True),
        Command("train", "train", "train a model from a recipe", is_job=True),
        Command("evaluate", "evaluate", "evaluate a model version, a run or a file of weights", is_job=True),
        Command("publish", "publish", "publish a finished run as a model version", is_job=True),
        Command("models", "models", "list model versions, move and roll back aliases, delete versions"),
        Command("deploy", "deploy", "deploy models with Ray Serve"),
        Command("submit", "submit", "run prepare, train, … as a job on a cluster and follow its log"),
        Command("completion", "completion", "print a completion script for bash or zsh"),
    )
}

JOBS = tuple(command.name for command in COMMANDS.values() if command.is_job)
