"""Run the whole line on real data: images, object store, cluster, weights, an answer over HTTP.

Trains a small model on 1,797 scans of handwritten digits, publishes it, deploys it and compares its answers with the
labels and with the trainer's own evaluation. Takes 3 to 6 minutes on 2 cores and closes with a line of JSON.
Interrupted, the next call resumes.
"""

from __future__ import annotations

import argparse
import json

from stoker.cli._instance import add_arguments, instance_of, program

__all__ = ["add_arguments", "run"]


def run(given: argparse.Namespace) -> None:
    print(json.dumps(program("quickstart").quickstart(instance_of(given))), flush=True)
