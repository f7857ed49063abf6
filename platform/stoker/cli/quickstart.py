"""Run the whole line on real data: images, object store, cluster, weights, an answer over HTTP.

Trains a small model on 1,797 scans of handwritten digits, publishes it, deploys it and compares its answers with the
labels and with the trainer's own evaluation. Takes 3 to 6 minutes on 2 cores and closes with a line of JSON.
Interrupted, the next call resumes.
"""

from __future__ import annotations

import argparse
import json
import signal

from stoker.cli._instance import add_arguments, instance_of
from stoker.errors import ClusterError

__all__ = ["add_arguments", "run"]


def run(given: argparse.Namespace) -> None:
    try:
        from stoker.embedded.quickstart import quickstart
    except ModuleNotFoundError as error:
        raise ClusterError(f"the package {error.name} is not here; pip install 'stoker[embedded]'") from None

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # stopped from outside, it cleans up as after Ctrl-C
    print(json.dumps(quickstart(instance_of(given))), flush=True)
