"""Train a model: ray job submit --working-dir . -- python jobs/train.py RECIPE [key=value ...]

RECIPE is a YAML file (jobs/recipes/); key=value overrides a field of it, for example optimizer.lr=0.2. Submitting
the same run name again continues the run from its last checkpoint.
"""

import argparse
import json

from stoker.command import run_command
from stoker.recipe import read_recipe


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    given = parser.parse_args(arguments)
    recipe = read_recipe(given.recipe, given.overrides)
    if recipe.model.names_version:
        from stoker.registry import with_source

        recipe = with_source(recipe)
    from stoker.training.driver import train  # after the recipe is known to be good: torch and Ray take seconds

    result = train(recipe)
    summary = {"run": result.run, "step": result.checkpoint, "images_per_s": round(result.images_per_s, 1)}
    print(json.dumps(summary | result.metrics.model_dump()))


if __name__ == "__main__":
    run_command(main)
