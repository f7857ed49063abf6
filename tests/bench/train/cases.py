"""The cases of bench-train: which module measures each, and what it needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from bench.train.jobs import Who

__all__ = ["Case", "Need", "cases", "chosen"]

Need = Literal["nothing", "store", "cluster"]

_RESNET50 = {"model": "resnet50", "side": 224, "micro": 4, "micro_batches": 2}
_RESNET18 = {"model": "resnet18", "side": 96, "micro": 8, "micro_batches": 2}
_TOY = {"model": "digitsnet", "side": 32, "micro": 2, "micro_batches": 2}
FAULTS = {
    "worker": "a worker killed",
    "node": "a node lost",
    "frozen": "a worker frozen",
    "driver": "the driver killed",
}


@dataclass(frozen=True)
class Case:
    """``measure`` names the module below ``bench.train``; ``ranks`` is 0 for what starts its processes itself.

    ``pair`` is what ours and the stock case have in common.
    """

    name: str
    measure: str
    arguments: dict[str, Any] = field(default_factory=dict)
    ranks: int = 0
    needs: Need = "nothing"
    who: Who = "stoker"
    pair: str = ""


def cases(*, is_toy: bool = False, with_stock_frozen: bool = False) -> list[Case]:
    """Return every case, in the order of a round; at toy size they only check that the code runs."""
    large, small = (_TOY, _TOY) if is_toy else (_RESNET50, _RESNET18)
    few, many = (2, 3) if is_toy else (5, 20)
    found = []
    for ranks in (1, 2):
        on = f"{ranks} rank{'s' if ranks > 1 else ''}"
        found.append(Case(f"step, ResNet-18 at 96, {on}", "step", {**small, "pairs": many}, ranks))
        found.append(Case(f"step, ResNet-50 at 224, {on}", "step", {**large, "pairs": few}, ranks))
    sizes = {"model": "resnet50", "image_size": 224, "micro": 16, "pairs": 3}
    if is_toy:
        sizes = {"model": "digitsnet", "image_size": 32, "micro": 2, "pairs": 3}
    found.append(Case("exact sums, ResNet-50 at 224, 2 ranks", "exact", {**sizes, "ranks": 2}, 0))
    blocks = {"blocks": 2, "steps": 2} if is_toy else {"blocks": 2, "steps": 4}
    found.append(Case("data from S3, ResNet-50 at 224, 1 rank", "data", {**large, **blocks}, 1, "store"))
    blocks = {"blocks": 2, "steps": 2} if is_toy else {"blocks": 3, "steps": 12}
    found.append(Case("data from S3, ResNet-18 at 96, 1 rank", "data", {**small, **blocks}, 1, "store"))
    saves = {"saves": 2, "quiet_steps": 2} if is_toy else {"saves": 3, "quiet_steps": 4}
    found.append(Case("checkpoint, ResNet-50 at 224", "checkpoint", {**large, **saves}, 1, "store"))
    found += _jobs("start", "submit to first step", "none")
    for fault, name in FAULTS.items():
        made = _jobs(fault, name, fault)
        found += made if fault != "frozen" or with_stock_frozen else made[:1]
    return found


def _jobs(pair: str, name: str, fault: str) -> list[Case]:
    return [Case(f"{name}, {who}", "faults", {"fault": fault}, 0, "cluster", who, pair) for who in ("stoker", "stock")]


def chosen(every: Sequence[Case], patterns: Sequence[str]) -> list[Case]:
    """Return the cases whose name contains one of ``patterns``, ignoring case; all if there are no patterns.

    Raises:
        ValueError: a pattern matches no case.
    """
    for pattern in patterns:
        if not any(pattern.lower() in case.name.lower() for case in every):
            raise ValueError(f"--only {pattern}: matches no case; choose from: {'; '.join(c.name for c in every)}")
    return [c for c in every if not patterns or any(pattern.lower() in c.name.lower() for pattern in patterns)]
