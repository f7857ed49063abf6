"""Train a model: stoker train RECIPE [key=value ...]

RECIPE is a YAML file (stoker init writes one); key=value overrides one of its fields, for example optimizer.lr=0.2.
Running the same run name again resumes the run from its last checkpoint. To train on a cluster, submit it:
stoker submit train RECIPE [key=value ...], or ray job submit --working-dir . -- python jobs/train.py RECIPE.
"""

from __future__ import annotations

import argparse
import json

from stoker.recipe import read_recipe

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="instead of what the recipe says")


def run(given: argparse.Namespace) -> None:
    recipe = read_recipe(given.recipe, given.overrides)
    if recipe.model.names_version:
        from stoker.registry import with_source

        recipe = with_source(recipe)
    from stoker.training.driver import train  # after the recipe is known to be valid: torch and Ray take seconds

    result = train(recipe)
    summary = {"run": result.run, "step": result.checkpoint, "images_per_s": round(result.images_per_s, 1)}
    print(json.dumps(summary | result.metrics.model_dump()))
