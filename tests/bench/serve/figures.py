"""The figures of bench-serve and their bars. Pure functions of what was measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import median

from bench.report import Figure, Measures

__all__ = ["Results", "serve_figures"]

Results = Mapping[str, Mapping[str, Sequence[Measures]]]
"""rounds by case and row"""

_DIGITS_BARS = {
    "FastAPI": {1: 0.85, 16: 1.5, 64: 1.5},
    "LitServe": {1: 3.0, 16: 3.0, 64: 3.0},
    "default proxy": {1: 6.0, 16: 6.0, 64: 6.0},
}
_EMPTY_BARS = {"LitServe": dict.fromkeys((1, 16, 64), 3.0), "default proxy": dict.fromkeys((1, 16, 64), 10.0)}
_RESNET_BARS = {"FastAPI": {1: 1.0, 8: 2.5}}
_OVERLOADED_P99 = 2.0
_REFUSED_MS = 50.0
_REVOKED_S = 5.0
_LOAD_S = 5.0
_PROXY_S = 4.0
_CHANGE_S = 60.0
"""``stoker deploy`` of an application, to its first answer"""


def serve_figures(found: Results) -> list[Figure]:
    """What the cases that ran say; a ratio is the median over rounds of the ratio within a round."""
    return [
        *_ratios("digits", found.get("digits", {}), _DIGITS_BARS, p99_of=("FastAPI",)),
        *_ratios("empty", found.get("empty", {}), _EMPTY_BARS, p99_of=()),
        *_ratios("resnet50", found.get("resnet50", {}), _RESNET_BARS, p99_of=("FastAPI",)),
        *_overload(found.get("overload", {})),
        *_decoding(found.get("decoding", {})),
        *_times(found),
    ]


def _ratios(
    case: str, rows: Mapping[str, Sequence[Measures]], bars: Mapping[str, Mapping[int, float]], p99_of: Sequence[str]
) -> Iterator[Figure]:
    for other, by_connections in bars.items():
        for count, bar in by_connections.items():
            ours, theirs = rows.get(f"stoker, {count}", ()), rows.get(f"{other}, {count}", ())
            if not ours or not theirs:
                continue
            name = f"{case}_vs_{other.lower().replace(' ', '_')}_{count}"
            yield Figure(f"{name}_times", _ratio(ours, theirs, "requests_per_s"), bar)
            if other in p99_of and count > 1:
                yield Figure(f"{name}_p99", _ratio(ours, theirs, "p99_ms"), 1.0, "at most")


def _overload(rows: Mapping[str, Sequence[Measures]]) -> Iterator[Figure]:
    usual, much = rows.get("16 connections", ()), rows.get("5 times the rate", ())
    if not usual or not much:
        return
    yield Figure("overload_accepted_p99", _ratio(much, usual, "accepted_p99_ms"), _OVERLOADED_P99, "below")
    yield Figure("overload_accepted_rate", _ratio(much, usual, "accepted_requests_per_s"))
    yield Figure("overload_refused_p99_ms", _of(much, "refused_p99_ms"), _REFUSED_MS, "below")
    yield Figure("overload_refused", _of(much, "refused"))
    yield Figure("overload_otherwise", _of(much, "otherwise"), 0.0, "at most")


def _decoding(rows: Mapping[str, Sequence[Measures]]) -> Iterator[Figure]:
    for what in ("a digit", "a photograph"):
        contained, beside = rows.get(f"{what}, in processes", ()), rows.get(f"{what}, on a thread", ())
        if contained and beside:
            name = what.removeprefix("a ")
            yield Figure(f"contained_percent_{name}", 100 * _ratio(contained, beside, "images_per_s"))


def _times(found: Results) -> Iterator[Figure]:
    now, before = found.get("starts", {}), found.get("starts before", {})
    for row, name, bar in (("a model", "load_s", _LOAD_S), ("up", "up_s", None), ("deploy", "deploy_s", None)):
        if now.get(row):
            yield Figure(name, _of(now[row], "seconds"), bar, "below")
        if now.get(row) and before.get(row):
            yield Figure(f"{name.removesuffix('_s')}_vs_before", _ratio(now[row], before[row], "seconds"))
    for case, row, name, bar in (
        ("proxy killed", "SIGKILL", "proxy_killed_s", _PROXY_S),
        ("proxy killed", "an application after it", "proxy_killed_change_s", _CHANGE_S),
        ("key revoked", "2 replicas", "key_revoked_s", _REVOKED_S),
        ("replicas", "1 to 2", "replicas_1_to_2_s", None),
        ("replicas", "0 to 1", "replicas_0_to_1_s", None),
    ):
        if measured := found.get(case, {}).get(row):
            yield Figure(name, _of(measured, "seconds"), bar, "below")


def _ratio(ours: Sequence[Measures], theirs: Sequence[Measures], measure: str) -> float:
    pairs = [(one.get(measure), other.get(measure)) for one, other in zip(ours, theirs, strict=False)]
    ratios = [a / b for a, b in pairs if a is not None and b]
    return median(ratios) if ratios else math.nan


def _of(rounds: Sequence[Measures], measure: str) -> float:
    values = [one[measure] for one in rounds if measure in one]
    return median(values) if values else math.nan
