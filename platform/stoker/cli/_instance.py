"""Shared by up, down, status, environment, quickstart and demo: arguments, the instance they name, its summary."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stoker.embedded import Instance

__all__ = ["add_arguments", "instance_of", "summary"]


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
