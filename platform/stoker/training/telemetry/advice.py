"""Name the bottleneck of an epoch in one line and suggest what to change, from what was measured."""

from __future__ import annotations

from collections.abc import Mapping

from stoker.recipe import Recipe
from stoker.runs.records import Goodput

__all__ = ["advice"]

_WORTH_SAYING = 0.05
"""fraction of the wall time below which a loss is not worth a change"""
_BUSY = 0.7
"""fraction of the time from which threads count as saturated"""
_FAILURES = ("bad_bodies", "deadlines", "slow_downs", "server_errors", "resets", "other_failures")


def advice(goodput: Goodput, metrics: Mapping[str, float], recipe: Recipe) -> str:
    """Return one line: the largest loss of the epoch as a percentage, its cause, and what to try.

    ``metrics`` is what ``Loader.metrics`` counted during the epoch on rank ``goodput.rank``.
    """
    return _largest_loss(goodput, metrics, recipe) + (
        f"; the other ranks wait for rank {goodput.rank}, {goodput.behind_s / goodput.wall_s:.0%} of the time"
        if goodput.wall_s and goodput.behind_s / goodput.wall_s >= _WORTH_SAYING
        else ""
    )


def _largest_loss(goodput: Goodput, metrics: Mapping[str, float], recipe: Recipe) -> str:
    losses = {kind: fraction for kind, fraction in goodput.fractions.items() if kind != "compute"}
    worst = max(losses, key=lambda kind: losses[kind])
    if losses[worst] < _WORTH_SAYING:
        return (
            f"compute {goodput.fractions['compute']:.0%}: most of the time is spent in the model; more workers, "
            f"{'' if recipe.precision == 'bfloat16' else 'precision: bfloat16, '}"
            f"{'compile: true, ' if _may_compile(recipe) else ''}or a larger batch.micro speed it up"
        )
    cause = {
        "data_wait": _data_wait,
        "communication": _communication,
        "checkpoint": _checkpoint,
        "evaluation": _evaluation,
        "restart": _restart,
    }[worst](goodput, metrics, recipe)
    return f"{worst.replace('_', ' ')} {losses[worst]:.0%}: {cause}"


def _may_compile(recipe: Recipe) -> bool:
    return not recipe.compile and recipe.model_copy(update={"compile": True}).refusal is None


def _data_wait(goodput: Goodput, metrics: Mapping[str, float], recipe: Recipe) -> str:
    data = recipe.data
    # the training loader is idle during evaluation and between attempts
    seconds = max(1e-9, goodput.wall_s * (1 - goodput.fractions["evaluation"] - goodput.fractions["restart"]))
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
        failures = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in failed.items() if count)
        return f"the store failed reads ({failures}), which were retried; check its limits, or try data.cache_dir"
    if reading >= _BUSY:
        rate = metrics.get("read_bytes", 0.0) / 1e6 / seconds
        many = reading >= _BUSY * data.read_threads
        return (
            f"reads are the bottleneck ({reading:.1f} of {data.read_threads} in flight on average, "
            f"{rate:.0f} MB/s, decode threads {decoding:.0%} busy); try "
            + (f"data.read_threads above {data.read_threads}, " if many else "a faster store or network, ")
            + ("a larger data.cache_mb" if data.cache_dir else "data.cache_dir for later epochs")
        )
    return (
        f"neither decode threads ({decoding:.0%} busy) nor reads ({reading:.1f} in flight on average) explain it; "
        "something else uses the worker's CPUs, or the epoch is too short to fill the pipeline"
    )


def _communication(goodput: Goodput, _: Mapping[str, float], recipe: Recipe) -> str:
    return "all-reduce between ranks; try fewer (a larger batch.total), fewer bytes (a smaller model), or a faster " + (
        "network" if recipe.workers.gpus else "network; on one machine, fewer workers with more CPUs each"
    )


def _checkpoint(_: Goodput, __: Mapping[str, float], recipe: Recipe) -> str:
    every = recipe.checkpoint.every_steps
    return f"the step loop is blocked by checkpoints; try checkpoint.every_steps above {every}, or a faster store"


def _evaluation(_: Goodput, __: Mapping[str, float], recipe: Recipe) -> str:
    every = recipe.evaluation.every_epochs
    return f"try evaluation.every_epochs above {every}"


def _restart(goodput: Goodput, _: Mapping[str, float], recipe: Recipe) -> str:
    seconds = goodput.fractions["restart"] * goodput.wall_s
    repeated = f", {goodput.repeated_s:.0f} s of it in repeated steps" if goodput.repeated_s else ""
    return (
        f"{seconds:.0f} s went into restarts{repeated}; check why workers failed, or try checkpoint.every_steps below "
        f"{recipe.checkpoint.every_steps}"
    )
