"""Start the object store and the Ray cluster on this machine, and keep them running.

What is running already is kept. The endpoint is deployed too, if a model digits@production was published and
nothing is deployed yet.
"""

from __future__ import annotations

import argparse

from stoker.cli._instance import add_arguments, instance_of, summary

__all__ = ["add_arguments", "run"]


def run(given: argparse.Namespace) -> None:
    instance = instance_of(given)
    from stoker.embedded.endpoint import deploy_endpoint

    instance.start("up")
    if deploy_endpoint(instance) is None:
        print("no model to serve yet: stoker quickstart trains and publishes a first one", flush=True)
    print(summary(instance, given), flush=True)
