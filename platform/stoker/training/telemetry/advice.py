"""The bottleneck of an epoch in one line, and what to try: decided by what was measured, not by guesses."""

from __future__ import annotations

from collections.abc import Mapping

from stoker.recipe import Recipe
from stoker.runs.records import Goodput

__all__ = ["advice"]

_WORTH_SAYING = 0.05
"""below this share of the wall time a loss is not worth a change"""
_BUSY = 0.7
"""threads that worked for this share of the time are what others wait for"""
_FAILURES = ("bad_bodies", "deadlines", "slow_downs", "server_errors", "resets", "other_failures")


def advice(goodput: Goodput, metrics: Mapping[str, float], recipe: Recipe) -> str:
    """One line: the largest loss of the epoch with its share, its cause, and what to try.

    ``metrics`` is what ``Loader.metrics`` counted during the epoch, on one rank.
    """
    return _of_the_largest(goodput, metrics, recipe) + (
        f"; the other ranks wait for rank {goodput.rank}, {goodput.behind_s / goodput.wall_s:.0%} of the time"
        if goodput.wall_s and goodput.behind_s / goodput.wall_s >= _WORTH_SAYING
        else ""
    )


def _of_the_largest(goodput: Goodput, metrics: Mapping[str, float], recipe: Recipe) -> str:
    losses = {kind: share for kind, share in goodput.shares.items() if kind != "compute"}
    worst = max(losses, key=lambda kind: losses[kind])
    if losses[worst] < _WORTH_SAYING:
        return (
            f"compute {goodput.shares['compute']:.0%}: the model is what takes the time; more workers, "
            f"{'' if recipe.precision == 'bfloat16' else 'precision: bfloat16, '}"
            f"{'' if recipe.compile else 'compile: true, '}or a larger batch.micro make it faster"
        )
    said = {
        "data_wait": _data_wait,
        "communication": _communication,
        "checkpoint": _checkpoint,
        "evaluation": _evaluation,
        "restart": _restart,
    }[worst](goodput, metrics, recipe)
    return f"{worst.replace('_', ' ')} {losses[worst]:.0%}: {said}"


def _data_wait(goodput: Goodput, metrics: Mapping[str, float], recipe: Recipe) -> str:
    data = recipe.data
    # the loader works while the steps do, and stands still in an evaluation and between attempts
    seconds = max(1e-9, goodput.wall_s * (1 - goodput.shares["evaluation"] - goodput.shares["restart"]))
    decoding = metrics.get("decode_s", 0.0) / (seconds * data.decode_threads)
    reading = metrics.get("read_request_s", 0.0) / seconds
    failed = {name: int(metrics.get(f"read_{name}", 0)) for name in _FAILURES}
    if decoding >= _BUSY:
        spare = recipe.workers.cpus - data.decode_threads - 1
        more = f"data.decode_threads above {data.decode_threads}"
        return (
            f"the decode threads are saturated ({decoding:.0%} busy); "
            + (f"try {more}" if spare > 0 else f"try {more} with more workers.cpus")
            + (", or data.decode: gpu" if recipe.workers.gpus and data.decode == "cpu" else ", or smaller images")
        )
    if any(failed.values()):
        told = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in failed.items() if count)
        return f"the store failed reads ({told}), which were tried again; see what limits it, or try data.cache_dir"
    if reading >= _BUSY:
        rate = metrics.get("read_bytes", 0.0) / 1e6 / seconds
        many = reading >= _BUSY * data.read_threads
        return (
            f"the reads are what it waits for ({reading:.1f} of {data.read_threads} under way at a time, "
            f"{rate:.0f} MB/s, decode threads {decoding:.0%} busy); try "
            + (f"data.read_threads above {data.read_threads}, " if many else "a faster store or network, ")
            + ("a larger data.cache_mb" if data.cache_dir else "data.cache_dir for the epochs to come")
        )
    return (
        f"neither decode threads ({decoding:.0%} busy) nor reads ({reading:.1f} under way at a time) explain it; the "
        "worker's CPUs are taken by something else, or the batches come late in an epoch too short to fill the pipeline"
    )


def _communication(goodput: Goodput, _: Mapping[str, float], recipe: Recipe) -> str:
    return (
        "the sums between ranks; fewer of them help (a larger batch.total), fewer bytes (a smaller model), or a faster "
        + ("network" if recipe.workers.gpus else "network; on one machine, fewer workers with more CPUs each")
    )


def _checkpoint(_: Goodput, __: Mapping[str, float], recipe: Recipe) -> str:
    every = recipe.checkpoint.every_steps
    return f"the step loop stands still for checkpoints; try checkpoint.every_steps above {every}, or a faster store"


def _evaluation(_: Goodput, __: Mapping[str, float], recipe: Recipe) -> str:
    every = recipe.evaluation.every_epochs
    return f"try evaluation.every_epochs above {every}"


def _restart(goodput: Goodput, _: Mapping[str, float], recipe: Recipe) -> str:
    seconds = goodput.shares["restart"] * goodput.wall_s
    repeated = f", {goodput.repeated_s:.0f} s of it steps done again" if goodput.repeated_s else ""
    return (
        f"{seconds:.0f} s went into restarts{repeated}; see why workers ended, or try checkpoint.every_steps below "
        f"{recipe.checkpoint.every_steps}"
    )
