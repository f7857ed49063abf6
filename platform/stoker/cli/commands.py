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
    """One subcommand: its name, its module, and its line in ``stoker --help``."""

    name: str
    module: str
    help: str
    is_job: bool = False
    """whether ``stoker submit`` can run it on a cluster"""

    def load(self) -> ModuleType:
        return importlib.import_module(self.module)

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
        Command("up", "stoker.cli.up", "start the object store, Ray cluster and endpoint on this machine"),
        Command("down", "stoker.cli.down", "stop them; the data are kept"),
        Command("status", "stoker.cli.status", "print what is running on this machine and where"),
        Command("environment", "stoker.cli.environment", "print shell exports for clients of them (holds secrets)"),
        Command(
            "quickstart", "stoker.cli.quickstart", "run the whole line on real data, from images to an HTTP answer"
        ),
        Command("demo", "stoker.cli.demo", "serve a pretrained model and ask it about real photographs"),
        Command("init", "stoker.cli.init", "create a project folder with a recipe and a Serve config"),
        Command("prepare", "stoker.cli.prepare", "make a data set from labelled images", is_job=True),
        Command("estimate", "stoker.cli.estimate", "estimate requests, bytes, time and cost of an epoch", is_job=True),
        Command("train", "stoker.cli.train", "train a model from a recipe", is_job=True),
        Command("evaluate", "stoker.cli.evaluate", "evaluate a model version, a run or a file of weights", is_job=True),
        Command("publish", "stoker.cli.publish", "publish a finished run as a model version", is_job=True),
        Command("import", "stoker.cli.import_model", "publish weights that were trained elsewhere", is_job=True),
        Command(
            "models", "stoker.cli.models", "list and import model versions, move and roll back aliases, delete versions"
        ),
        Command("deploy", "stoker_serve.deploy", "deploy models with Ray Serve"),
        Command("keys", "stoker.cli.keys", "make, list and revoke API keys of an endpoint"),
        Command("submit", "stoker.cli.submit", "run prepare, train, … as a job on a cluster and follow its log"),
        Command("watch-spot", "stoker.cli.watch_spot", "drain this node when AWS takes its spot machine back"),
        Command("completion", "stoker.cli.completion", "print a completion script for bash or zsh"),
    )
}

JOBS = tuple(command.name for command in COMMANDS.values() if command.is_job)
