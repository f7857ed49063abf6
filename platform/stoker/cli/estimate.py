"""Estimate what an epoch asks of the object store: stoker estimate URL|RECIPE

URL is a data set, RECIPE a YAML file whose data and batch are used. Prints requests, bytes, time and cost, and a line
of JSON. Only the manifest is read.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from stoker.command import not_negative, positive, positive_int
from stoker.dataset.cost import EpochCost, Prices, Shape, Store, estimate_epoch
from stoker.errors import RecipeError

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("of", metavar="URL|RECIPE", help="a data set's URL, or a recipe (.yaml)")
    parser.add_argument(
        "--batch", type=positive_int, help="samples a step over all ranks (default: the recipe's, or 256)"
    )
    parser.add_argument("--ranks", type=positive_int, help="default: the recipe's most workers, or 1")
    parser.add_argument("--images-per-s", type=positive, help="that one rank trains on; default: reading is the limit")
    parser.add_argument(
        "--bandwidth-mb-s", type=positive, default=Store.bandwidth_mb_s, help="to a rank (default 1000)"
    )
    parser.add_argument("--latency-ms", type=not_negative, default=Store.latency_ms, help="of a request (default 30)")
    parser.add_argument(
        "--dollars-per-million-requests", type=not_negative, default=Prices.million_requests, help="default 0.40"
    )
    parser.add_argument("--dollars-per-gb", type=not_negative, default=Prices.gb, help="default 0: within one region")


def run(given: argparse.Namespace) -> None:
    from stoker.dataset.format.manifest import read_manifest
    from stoker.recipe import Data, read_recipe
    from stoker.storage import locate

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
    print(_report(cost, shape))


def _report(cost: EpochCost, shape: Shape) -> str:
    """The estimate for people, and in the last line for programs."""
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
