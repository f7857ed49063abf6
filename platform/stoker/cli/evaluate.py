"""Evaluate a model version, a run's last checkpoint, or a file of weights.

    stoker evaluate digits@production
    stoker evaluate digits-1 --run
    stoker evaluate s3://bucket/weights.safetensors --recipe digits.yaml

Every sample of the split counts once, and equal weights give equal numbers. Prints top-1 and top-5 by class, those of
the split, the mean of the classes' top-1 (macro accuracy), and a line of JSON. A file needs --recipe, or a model.json
next to it.
"""

from __future__ import annotations

import argparse
import json
import os

from stoker.errors import RunError

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("reference", help="digits@3, digits@production, digits; a run's name; a .safetensors URL")
    parser.add_argument("--run", action="store_true", help="the reference is a run")
    parser.add_argument("--recipe", help="of a file of weights: what they were trained as")
    parser.add_argument("--split", help="default: the recipe's validation split")
    parser.add_argument("--data", help="URL of another data set of the same classes")
    parser.add_argument("--storage", default=os.environ.get("STOKER_STORAGE"), help="default: STOKER_STORAGE")


def run(given: argparse.Namespace) -> None:
    is_file = given.reference.endswith(".safetensors") and not given.run
    if not given.storage and not is_file:
        raise RunError("no storage given for models and runs; give --storage s3://bucket or set STOKER_STORAGE")
    from stoker.predict import EvaluationTarget, evaluate_target
    from stoker.storage import locate

    if is_file:
        target = EvaluationTarget.from_file(locate(given.reference, timeout_s=10), given.recipe)
    else:
        storage = locate(given.storage, timeout_s=10)
        load = EvaluationTarget.from_run if given.run else EvaluationTarget.from_version
        target = load(storage, given.reference)
    classes, result = evaluate_target(target, split=given.split, data_url=given.data)
    width = max(20, *(len(name) for name in classes))
    print(f"{'class':>{width}}  {'samples':>8} {'top-1':>9} {'top-5':>9}")
    counts = zip(result.confusion.sum(dim=1), result.confusion.diagonal(), result.top5_by_class, strict=True)
    by_class = {}
    for name, (samples, right, top5) in zip(classes, ([int(n) for n in c] for c in counts), strict=True):
        fractions = (right / samples, top5 / samples) if samples else None
        shown = "{:9.2%} {:9.2%}".format(*fractions) if fractions else f"{'-':>9} {'-':>9}"
        print(f"{name:>{width}}  {samples:>8,} {shown}")
        by_class[name] = fractions
    metrics = result.metrics
    print(
        f"{'all':>{width}}  {metrics.samples:>8,} {metrics.accuracy:9.2%} {metrics.top5:9.2%}  loss {metrics.loss:.4f}"
    )
    if metrics.macro_accuracy is not None:
        print(f"{'mean of the classes':>{width}}  {'':>8} {metrics.macro_accuracy:9.2%}")
    print(json.dumps({"reference": given.reference, **metrics.model_dump(), "by_class": by_class}))
