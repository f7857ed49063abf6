"""Publish a finished run as a model version: python jobs/publish.py RUN MODEL [--alias production]

RUN is a run's name below the storage URL (--storage, or STOKER_STORAGE), or the URL of its folder. The version is
checked before anybody can see it: full validation metrics, and predictions equal to the trainer's own.
"""

import argparse
import json
import os

from stoker.command import run_command
from stoker.errors import RunError
from stoker.storage import locate


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("model")
    parser.add_argument("--alias", help="point this alias at the new version")
    parser.add_argument("--storage", default=os.environ.get("STOKER_STORAGE"), help="default: STOKER_STORAGE")
    given = parser.parse_args(arguments)
    above, _, run = given.run.rstrip("/").rpartition("/runs/")
    url = above or given.storage
    if not url:
        raise RunError("where the run lies is not known; give --storage s3://bucket or set STOKER_STORAGE")
    from stoker.predict import check_parity
    from stoker.registry import publish_run

    storage = locate(url, timeout_s=10)
    version = publish_run(storage, run, given.model, verify=check_parity, alias=given.alias)
    print(f"published {version.reference} from run {run}: accuracy {version.card.metrics.accuracy:.2%}")
    print(json.dumps({"model": version.reference, "alias": given.alias, "url": version.location.url}))


if __name__ == "__main__":
    run_command(main)
