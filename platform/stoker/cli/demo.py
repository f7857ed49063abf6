"""Serve a pretrained ImageNet model beside the digits, ask it about real photographs, and keep it running until Ctrl-C.

The weights come with a package, so nothing is downloaded. Prints the five most probable labels of each photograph with
the curl that asks about a picture of your own, and a line of JSON. Takes 2 to 3 minutes on 2 cores, and a minute where
the quickstart or the demo was run before.
"""

from __future__ import annotations

import argparse
import contextlib
import threading

from stoker.cli._instance import add_arguments as add_instance_arguments
from stoker.cli._instance import instance_of, program

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_instance_arguments(parser)
    parser.add_argument("--once", action="store_true", help="stop after the answers instead of waiting for Ctrl-C")


def run(given: argparse.Namespace) -> None:
    program("demo").demo(instance_of(given), (lambda: None) if given.once else _wait)


def _wait() -> None:
    print("running until Ctrl-C", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()
    print("stopping", flush=True)
