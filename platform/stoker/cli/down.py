"""Stop the object store and the Ray cluster on this machine, with all jobs and endpoints. The data are kept."""

from __future__ import annotations

import argparse

from stoker.cli._instance import add_arguments, instance_of

__all__ = ["add_arguments", "run"]


def run(given: argparse.Namespace) -> None:
    instance = instance_of(given)
    count = instance.stop() if instance.folder.path.is_dir() else 0
    kept = instance.folder.path / "store"
    print(f"down: stopped {count} processes" + (f"; the data are kept in {kept}" if kept.is_dir() else ""), flush=True)
