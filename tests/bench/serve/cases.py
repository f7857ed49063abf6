"""The cases of bench-serve by name, in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.serve import contenders, decoding, faults, overload, starts
from bench.serve.clusters import Stoker
from bench.serve.contenders import Row

__all__ = ["Case", "cases", "chosen"]


@dataclass(frozen=True)
class Case:
    """``measure`` runs on the benchmark's instance, ``alone`` in a folder with nothing else running; one is given.

    Both yield (row, measures); rows that come more than once are rounds of the same.
    """

    name: str
    what: str
    measure: Callable[[Stoker], Iterator[Row]] | None = None
    alone: Callable[[Path], Iterator[Row]] | None = None
    is_core: bool = True
    """whether it runs without being named"""


def cases(*, rounds: int = 3, seconds: float = 3.0, is_toy: bool = False) -> list[Case]:
    """All cases; a toy asks stoker alone, once and shortly."""
    if is_toy:
        rounds, seconds = 1, 0.5
    return [
        Case("starts", "seconds from nothing to an answer", alone=starts.starts),
        Case("starts before", "the same of the shape before", alone=starts.starts_before, is_core=False),
        Case(
            "digits",
            "requests of a small image",
            lambda place: contenders.digits(place, rounds, seconds, with_others=not is_toy),
        ),
        Case(
            "empty", "an empty handler", lambda place: contenders.empty(place, rounds, seconds, with_others=not is_toy)
        ),
        Case(
            "overload",
            "five times what can be answered",
            lambda place: overload.overload(place, seconds=2.0 if is_toy else 30.0),
        ),
        Case(
            "decoding", "images/s with decoding in processes", lambda place: decoding.decoding(place, rounds, seconds)
        ),
        Case("key revoked", "a key is revoked", faults.key_revoked),
        Case("replicas", "replicas come", faults.replicas),
        Case("resnet50", "ResNet-50 at 224 pixels", lambda place: contenders.resnet50(place, rounds, seconds)),
        Case("proxy killed", "HAProxy is killed", faults.haproxy_killed),
    ]


def chosen(every: Sequence[Case], only: Sequence[str]) -> list[Case]:
    """The cases named in ``only``; those of the core without it.

    Raises:
        ValueError: one of them is no case.
    """
    names = [case.name for case in every]
    for name in only:
        if name not in names:
            raise ValueError(f"--only {name}: no such case; choose from: {', '.join(names)}")
    return [case for case in every if (case.name in only if only else case.is_core)]
