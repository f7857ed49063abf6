"""From medians to figures: what stoker promises against the best of its peers in the same run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bench.data.cases import Role
from bench.data.rounds import Outcome
from bench.report import Figure, Measures, medians

__all__ = ["best", "data_figures"]

_S3, _CACHE, _LOCAL = "stoker, S3", "stoker, node cache", "stoker, local"


def data_figures(outcomes: Sequence[Outcome]) -> list[Figure]:
    """The figures of bench-data; one whose cases did not run is left out."""
    found = {outcome.case.name: medians(outcome.rounds) for outcome in outcomes if outcome.rounds}

    def ours(case: str, measure: str) -> float | None:
        return found.get(case, {}).get(measure)

    def peer(role: Role, measure: str, choose: Callable[..., float] = max) -> float | None:
        return best(outcomes, role, measure, choose)

    cpu, first = "images_per_cpu_s", "first_batch_s"
    ratios = (
        ("s3_vs_best_streaming_peer", ours(_S3, cpu), peer("streaming", cpu), 2.0),
        ("s3_vs_best_local_peer", ours(_S3, cpu), peer("local", cpu), 1.4),
        ("cache_vs_best_local_peer", ours(_CACHE, cpu), peer("local", cpu), 1.7),
        ("cache_vs_decode_alone", ours(_CACHE, cpu), ours("stoker, decode alone", cpu), 0.85),
        ("raw_vs_best_client", ours("stoker, raw", "mb_per_s"), peer("raw", "mb_per_s"), 0.85),
        ("first_batch_vs_best_streaming_peer", peer("streaming", first, min), ours(_S3, first), 1.0),
        ("first_batch_local_vs_best_local_peer", peer("local", first, min), ours(_LOCAL, first), 1.0),
        ("resume_vs_best_peer", peer("resume", "resume_s", min), ours("stoker, resume", "resume_s"), 1.0),
        ("threads_1_to_2", ours("stoker, 2 threads", "images_per_s"), ours("stoker, 1 thread", "images_per_s"), 1.9),
    )
    values = (
        ("s3_images_per_cpu_s", ours(_S3, cpu)),
        ("cache_images_per_cpu_s", ours(_CACHE, cpu)),
        ("local_images_per_cpu_s", ours(_LOCAL, cpu)),
        ("s3_images_per_s", ours(_S3, "images_per_s")),
        ("raw_mb_per_s", ours("stoker, raw", "mb_per_s")),
        ("raw_with_start_mb_per_s", ours("stoker, raw", "mb_per_s_with_start")),
    )
    figures = [Figure(name, value) for name, value in values if value is not None]
    figures += [Figure(name, a / b, bar) for name, a, b, bar in ratios if a is not None and b is not None]
    return [*figures, *_bounds(found)]


def _bounds(found: dict[str, Measures]) -> list[Figure]:
    figures = []
    if (first_s := found.get(_S3, {}).get("first_batch_s")) is not None:
        figures.append(Figure("first_batch_s", first_s, 2.0, "below"))
    if resume := found.get("stoker, resume"):
        figures.append(Figure("resume_samples_lost_or_repeated", resume["lost"] + resume["repeated"], 0.0, "at most"))
    if memory := found.get("stoker, memory at ImageNet's shape"):
        figures.append(Figure("memory_share_of_bound", memory["share_of_bound"], 1.0, "at most"))
    return figures


def best(outcomes: Sequence[Outcome], role: Role, measure: str, choose: Callable[..., float] = max) -> float | None:
    """The best median of ``measure`` among the peers of ``role``; None if there is none."""
    values = [medians(o.rounds).get(measure) for o in outcomes if o.case.role == role and not o.case.is_ours]
    return choose((value for value in values if value is not None), default=None)
