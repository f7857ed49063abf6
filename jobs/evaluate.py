"""Evaluate a model version, or a run's last checkpoint: python jobs/evaluate.py digits@production [--run]

Every sample of the split counts once. Prints accuracy by class and a line of JSON.
"""

import argparse
import json
import os

from stoker.command import run_command
from stoker.errors import RunError
from stoker.storage import locate


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference", help="digits@3, digits@production, digits; with --run a run's name")
    parser.add_argument("--run", action="store_true", help="the reference is a run")
    parser.add_argument("--split", help="default: the recipe's validation split")
    parser.add_argument("--data", help="URL of another data set of the same classes")
    parser.add_argument("--storage", default=os.environ.get("STOKER_STORAGE"), help="default: STOKER_STORAGE")
    given = parser.parse_args(arguments)
    if not given.storage:
        raise RunError("where models and runs lie is not known; give --storage s3://bucket or set STOKER_STORAGE")
    from stoker.predict import evaluate_reference

    storage = locate(given.storage, patience_s=10)
    classes, found = evaluate_reference(
        storage, given.reference, is_run=given.run, split=given.split, data_url=given.data
    )
    for name, row, right in zip(classes, found.confusion.tolist(), found.confusion.diagonal().tolist(), strict=True):
        print(f"{name:>20}  {right:>6} of {sum(row):<6} {right / max(1, sum(row)):8.2%}")
    print(json.dumps({"reference": given.reference, **found.metrics.model_dump()}))


if __name__ == "__main__":
    run_command(main)
