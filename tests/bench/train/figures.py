"""From rounds to figures: what stoker promises, as medians of ratios that were taken side by side."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from bench.report import Figure, Measures, medians
from bench.train.cases import Case

__all__ = ["train_figures"]

Rounds = Mapping[str, Sequence[Measures]]
"""case's name to what each round found"""

_FROZEN_S = 60.0
"""a tenth of the ten minutes that stock Ray takes to notice"""


def train_figures(every: Sequence[Case], rounds: Rounds) -> list[Figure]:
    """The figures of bench-train; one whose cases did not run is left out."""
    found = {name: medians(measured) for name, measured in rounds.items() if measured}
    figures = []
    for case in every:
        measured = found.get(case.name)
        if measured is None:
            continue
        where = _key(case.name)
        if case.measure == "step":
            figures.append(Figure(f"overhead_{where}", measured["time_ratio"] - 1, 0.02, "at most"))
            figures.append(Figure(f"overhead_cpu_{where}", measured["cpu_ratio"] - 1))
        elif case.measure == "exact":
            figures.append(Figure("exact_sums_share", measured["share"], 0.05, "at most"))
        elif case.measure == "data":
            figures.append(Figure(f"true_vs_synthetic_{where}", measured["data_ratio"]))
        elif case.measure == "checkpoint":
            figures.append(Figure("checkpoint_stall_share", measured["stall_share"], 0.02, "at most"))
    return [*figures, *_scaling(every, found), *_jobs(rounds)]


def _scaling(every: Sequence[Case], found: Mapping[str, Measures]) -> list[Figure]:
    figures = []
    for case in every:
        if case.measure == "step" and case.ranks == 2:
            alone = found.get(case.name.replace("2 ranks", "1 rank"))
            if alone and case.name in found:
                ratio = found[case.name]["images_per_s"] / alone["images_per_s"]
                figures.append(Figure(f"scaling_1_to_2_{_key(case.name.rpartition(',')[0])}", ratio))
    return figures


_BARS = {
    "start": ("submit_to_first_step", "first_step_s", 0.45),
    "worker": ("worker_killed", "next_step_s", 0.45),
    "node": ("node_lost", "next_step_s", 0.3),
    "frozen": ("worker_frozen", "next_step_s", 0.1),
    "driver": ("driver_killed", "next_step_s", 0.7),
}
"""the cases' pair: (figure's name, measure, the most that ours may be of stock's)"""


def _jobs(rounds: Rounds) -> list[Figure]:
    from bench.train.cases import cases

    figures = []
    named = {(case.pair, case.who): case.name for case in cases(with_stock_frozen=True) if case.pair}
    for fault, (name, measure, bar) in _BARS.items():
        ours, stock = (rounds.get(named[fault, who], ()) for who in ("stoker", "stock"))
        for figure_name, measured in ((f"{name}_s", ours), (f"stock_{name}_s", stock)):
            if measured:
                seconds = statistics.median(one[measure] for one in measured)
                is_alone = fault == "frozen" and not stock and not figure_name.startswith("stock")
                figures.append(Figure(figure_name, seconds, *((_FROZEN_S, "at most") if is_alone else ())))
        pairs = list(zip(ours, stock, strict=False))
        if pairs:
            ratio = statistics.median(a[measure] / b[measure] for a, b in pairs)
            figures.append(Figure(f"{name}_vs_stock", ratio, bar, "at most"))
        if pairs and all("cpu_s" in one for pair in pairs for one in pair):
            figures.append(Figure(f"{name}_cpu_vs_stock", statistics.median(a["cpu_s"] / b["cpu_s"] for a, b in pairs)))
    return figures


def _key(name: str) -> str:
    """``step, ResNet-50 at 224, 2 ranks`` as ``resnet_50_at_224_2_ranks``."""
    kept = name.partition(", ")[2].lower()
    return "_".join("".join(c if c.isalnum() else " " for c in kept).split())
