"""Publish a finished run as a model version: stoker publish RUN MODEL [--alias production]

RUN is a run's name below the storage URL (--storage, or STOKER_STORAGE), or the URL of its folder. The version is
checked before it becomes visible: full validation metrics, and predictions equal to the trainer's own.
"""

from __future__ import annotations

import argparse
import json
import os

from stoker.errors import RunError

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run's name, or the URL of its folder")
    parser.add_argument("model", metavar="MODEL", help="the name to publish it under")
    parser.add_argument("--alias", help="point this alias at the new version")
    parser.add_argument("--storage", default=os.environ.get("STOKER_STORAGE"), help="default: STOKER_STORAGE")


def run(given: argparse.Namespace) -> None:
    above, _, name = given.run.rstrip("/").rpartition("/runs/")
    url = above or given.storage
    if not url:
        raise RunError("no storage given for the run; give --storage s3://bucket or set STOKER_STORAGE")
    from stoker.predict import check_parity
    from stoker.registry import publish_run
    from stoker.storage import locate

    storage = locate(url, timeout_s=10)
    version = publish_run(storage, name, given.model, verify=check_parity, alias=given.alias)
    assert version.card.metrics is not None  # the gate
    print(f"published {version.reference} from run {name}: accuracy {version.card.metrics.accuracy:.2%}")
    print(json.dumps({"model": version.reference, "alias": given.alias, "url": version.location.url}))
