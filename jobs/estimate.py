"""Estimate requests, bytes, time and cost of an epoch before it starts: python jobs/estimate.py URL|RECIPE

URL is a data set; of RECIPE, a YAML file, its data and batch are taken. The last line of the output is JSON. Reads the
manifest only.
"""

import argparse
import json
from dataclasses import asdict

from stoker.command import run_command
from stoker.dataset.cost import EpochCost, Prices, Shape, Store, estimate_epoch
from stoker.dataset.format.manifest import read_manifest
from stoker.errors import RecipeError
from stoker.recipe import Data, read_recipe
from stoker.storage import locate


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("of", metavar="URL|RECIPE", help="a data set's URL, or a recipe (.yaml)")
    parser.add_argument("--batch", type=int, help="samples a step over all ranks (default: the recipe's, or 256)")
    parser.add_argument("--ranks", type=int, help="default: workers.max of the recipe, or 1")
    parser.add_argument("--images-per-s", type=float, help="training throughput of a rank (default: reading only)")
    parser.add_argument("--bandwidth-mb-s", type=float, default=Store.bandwidth_mb_s, help="to a rank (default 1000)")
    parser.add_argument(
        "--latency-ms", type=float, default=Store.latency_ms, help="to the first byte of a request (default 30)"
    )
    parser.add_argument(
        "--dollars-per-million-requests", type=float, default=Prices.million_requests, help="default 0.40"
    )
    parser.add_argument("--dollars-per-gb", type=float, default=Prices.gb, help="default 0: within one region")
    given = parser.parse_args(arguments)
    recipe = read_recipe(given.of) if given.of.endswith((".yaml", ".yml")) else None
    data = recipe.data if recipe else Data(url=given.of)
    shape = Shape(
        global_batch=given.batch or (recipe.batch.total if recipe else 256),
        ranks=given.ranks or (recipe.workers.max if recipe else 1),
        block_samples=data.block_samples,
        read_threads=data.read_threads,
        images_per_s=given.images_per_s,
    )
    split = read_manifest(locate(data.url, timeout_s=10)).split(data.train_split)
    store = Store(given.bandwidth_mb_s, given.latency_ms)
    prices = Prices(given.dollars_per_million_requests, given.dollars_per_gb)
    try:
        cost = estimate_epoch(split, shape, store, prices)
    except ValueError as error:
        raise RecipeError(f"{given.of}: {error}; give other sizes") from None
    print(report(cost, shape))


def report(cost: EpochCost, shape: Shape) -> str:
    """The estimate as lines for people and a last line of JSON."""
    slower = "training" if cost.seconds > cost.read_s else "reading"
    return "\n".join(
        [
            f"{'samples':>10}  {cost.samples:,} in {cost.steps:,} steps of {shape.global_batch:,}",
            f"{'requests':>10}  {cost.requests:,} ({cost.data_requests:,} for samples, {cost.index_requests:,} for "
            f"indexes), {cost.requests_per_s:,.0f} a second",
            f"{'bytes':>10}  {cost.bytes / 1e9:,.3f} GB, {cost.bytes_per_s / 1e6:,.0f} MB a second",
            f"{'time':>10}  {cost.seconds:,.0f} s on {shape.ranks} ranks, limited by {slower}",
            f"{'cost':>10}  ${cost.cost:,.4f} an epoch",
            json.dumps({**asdict(cost), "requests": cost.requests, "bytes": cost.bytes}),
        ]
    )


if __name__ == "__main__":
    run_command(main)
