"""Print shell exports for clients of the store, the cluster and the endpoint on this machine.

THEY HOLD SECRETS (S3 key, API key): for eval "$(stoker environment)", not for a log.
"""

from __future__ import annotations

import argparse
import os
import shlex

from stoker.cli._instance import add_arguments, instance_of

__all__ = ["add_arguments", "run"]


def run(given: argparse.Namespace) -> None:
    instance = instance_of(given)
    instance.require()
    for name, value in instance.environment().items():
        print(f"export {name}={shlex.quote(value)}")
    if unset := [name for name in ("AWS_PROFILE", "RAY_AUTH_TOKEN") if name in os.environ]:
        print(f"unset {' '.join(unset)}")
