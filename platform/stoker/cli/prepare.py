"""Prepare a data set of labelled images: stoker prepare SOURCE DEST

Reads the images at SOURCE and writes WebDataset shards, their indexes and a manifest to DEST; both are paths or URLs
(s3://...). Submitted to a cluster (stoker submit prepare ...), the work is distributed over it; called directly, it
runs on this machine. Run the same command again to resume an interrupted preparation.
"""

from __future__ import annotations

import argparse

from stoker.dataset.prepare.command import add_arguments, prepare_command

__all__ = ["add_arguments", "run"]


def run(given: argparse.Namespace) -> None:
    print(prepare_command(given))
