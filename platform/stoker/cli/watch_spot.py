"""Watch for AWS's notice that this spot machine is taken back, then drain its Ray node; run it on each worker node.

It asks the metadata service every two seconds and ends once the node drains. AWS_EC2_METADATA_SERVICE_ENDPOINT, which
AWS's own tools read too, names another address of the service.
"""

from __future__ import annotations

import argparse
import os

from stoker.command import positive
from stoker.spot_notice import METADATA_URL, MetadataService, drain_this_node, watch

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--every", type=positive, default=2.0, metavar="SECONDS", help="from one question to the next (default 2)"
    )


def run(given: argparse.Namespace) -> None:
    service = MetadataService(os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or METADATA_URL)
    notice = watch(service, drain_this_node, every_s=given.every)
    print(f"this machine is taken back ({notice.action}); its Ray node drains", flush=True)
