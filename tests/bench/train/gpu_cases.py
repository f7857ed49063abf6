"""The cases of bench-gpu, and the figures that are made of them."""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.report import Figure, Measures, medians

__all__ = ["GpuCase", "gpu_cases", "gpu_figures"]

Rounds = Mapping[str, Sequence[Measures]]
"""case's name to what each round found"""

_DECODERS = {"CPU decode": "cpu_decode", "GPU decode": "gpu_decode", "node cache": "node_cache"}
_HASH = "hash"


@dataclass(frozen=True)
class GpuCase:
    """``measure`` names the module below ``bench.train``; ``is_fed`` by the loader from the set in the store."""

    name: str
    measure: str
    arguments: dict[str, Any] = field(default_factory=dict)
    is_fed: bool = False
    is_repeated: bool = True
    """in each round; what has no noise is measured once"""


def gpu_cases(*, is_toy: bool, micro: int) -> list[GpuCase]:
    """Every case, in the order of a round: what needs the fewest things to work comes first."""
    sizes = _sizes(is_toy, micro)
    loops = {
        "plain eager loop, synthetic": {"loop": "plain"},
        "stoker eager, synthetic": {"loop": "stoker"},
        "stoker exact sums, synthetic": {"loop": "stoker", "exact": True},
        "plain compiled loop, synthetic": {"loop": "plain", "compiles": True},
        "stoker, synthetic": {"loop": "stoker", "compiles": True},
    }
    fed = {
        "stoker, S3, CPU decode": {"source": "cpu"},
        "stoker, S3, GPU decode": {"source": "gpu"},
        "stoker, S3, node cache": {"source": "cache"},
    }
    found = [GpuCase(name, "gpu_loop", sizes | given) for name, given in loops.items()]
    small = {key: sizes[key] for key in ("device", "model")} | (
        {"side": 32, "micro": 4} if is_toy else {"side": 160, "micro": 32}
    )
    for kind, compiles in (("eager", False), ("compiled", True)):
        for phase in ("through", "resumed"):
            given = {**small, "compiles": compiles, "phase": phase}
            found.append(GpuCase(f"weights, {kind}, {phase}", "gpu_weights", given, is_repeated=False))
    found.append(GpuCase("parity of devices", "gpu_parity", small, is_repeated=False))
    compiled = {"loop": "stoker", "compiles": True}
    return found + [GpuCase(name, "gpu_loop", sizes | compiled | given, is_fed=True) for name, given in fed.items()]


def _sizes(is_toy: bool, micro: int) -> dict[str, Any]:
    if is_toy:
        return {"device": "cpu", "model": "digitsnet", "side": 32, "micro": 4, "warm": 1, "steps": 3,
                "decode_threads": 2}  # fmt: skip
    threads = max(1, (os.cpu_count() or 2) - 2)
    return {"device": "cuda", "model": "resnet50", "side": 224, "micro": micro, "warm": 15, "steps": 80,
            "decode_threads": threads}  # fmt: skip


def gpu_figures(rounds: Rounds) -> list[Figure]:
    """Medians of ratios round by round; one whose cases did not run is left out."""
    found = [*_speeds(rounds), *_fed(rounds), *_weights(rounds)]
    for name, measured in rounds.items():
        middle, where = medians(measured), _key(name)
        if "synchronisations" in middle:
            most = 1.0 if "exact" in name else 0.0 if name.startswith("stoker") else None
            found.append(Figure(f"synchronisations_{where}", middle["synchronisations"], most, "at most"))
        if "memory_mb" in middle:
            found.append(Figure(f"memory_mb_{where}", middle["memory_mb"]))
        found += [Figure(measure, value) for measure, value in middle.items() if measure.startswith("parity_")]
    return found


def _ratio(rounds: Rounds, above: str, below: str) -> float | None:
    pairs = zip(rounds.get(above, ()), rounds.get(below, ()), strict=False)
    ratios = [a["images_per_s"] / b["images_per_s"] for a, b in pairs]
    return statistics.median(ratios) if ratios else None


def _speeds(rounds: Rounds) -> list[Figure]:
    wanted = (
        ("synthetic_vs_plain", "stoker, synthetic", "plain eager loop, synthetic", 1.10),
        ("synthetic_vs_plain_compiled", "stoker, synthetic", "plain compiled loop, synthetic", 0.98),
        ("eager_vs_plain", "stoker eager, synthetic", "plain eager loop, synthetic", 0.98),
    )
    ratios = ((name, _ratio(rounds, above, below), bar) for name, above, below, bar in wanted)
    figures = [Figure(name, value, bar) for name, value, bar in ratios if value is not None]
    cost = _ratio(rounds, "stoker eager, synthetic", "stoker exact sums, synthetic")
    return figures + ([] if cost is None else [Figure("exact_sums_share", cost - 1, 0.05, "at most")])


def _fed(rounds: Rounds) -> list[Figure]:
    figures = []
    for name, key in _DECODERS.items():
        value = _ratio(rounds, f"stoker, S3, {name}", "stoker, synthetic")
        if value is not None:
            figures.append(Figure(f"true_vs_synthetic_{key}", value))
    if figures:
        figures.append(Figure("true_vs_synthetic", max(figure.value for figure in figures), 0.97))
    for name, key in _DECODERS.items():
        if measured := rounds.get(f"stoker, S3, {name}"):
            figures.append(Figure(f"goodput_{key}", medians(measured)["goodput"]))
    return figures


def _weights(rounds: Rounds) -> list[Figure]:
    """1 where a run that was resumed at another size has the hash of the one that went through; else 0."""
    figures = []
    for kind, bar in (("eager", 1.0), ("compiled", None)):
        through, resumed = (rounds.get(f"weights, {kind}, {phase}") for phase in ("through", "resumed"))
        if through and resumed:
            figures.append(Figure(f"equal_weights_{kind}", float(through[0][_HASH] == resumed[0][_HASH]), bar))
    return figures


def _key(name: str) -> str:
    return "_".join("".join(c if c.isalnum() else " " for c in name.lower()).split())
