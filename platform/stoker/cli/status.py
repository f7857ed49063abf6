"""Print what is running on this machine and where; exit status 1 if the store or the cluster does not answer."""

from __future__ import annotations

import argparse

from stoker.cli._instance import add_arguments, instance_of, summary

__all__ = ["add_arguments", "run"]


def run(given: argparse.Namespace) -> None:
    instance = instance_of(given)
    if problem := instance.problem():
        print(f"{problem} (state folder {instance.folder.path})", flush=True)
        raise SystemExit(1)
    print(summary(instance, given), flush=True)
