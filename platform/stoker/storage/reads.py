"""How range reads behave, and what became of them: one object for all the reads of a stream.

The policy is fixed when it is made; the counters grow while reads run and are what a metric shows.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, fields

from stoker.storage.hedging import Hedging
from stoker.storage.in_flight import InFlight
from stoker.storage.retry import failure_kind

__all__ = ["ReadCounters", "Reads"]


@dataclass
class ReadCounters:
    """What became of the requests so far. Safe to use from many threads.

    ``requests`` were sent, ``bytes`` came and were good. Failures by kind: ``bad_bodies`` (wrong length or checksum),
    ``deadlines`` (no answer in time), ``slow_downs`` (429, 503), ``server_errors`` (other 5xx), ``resets`` (the
    connection failed), ``refusals`` (missing or not permitted), ``other_failures``. ``retries`` were tried again after
    one of them, ``backoff_s`` seconds later in sum. ``hedges`` are second requests, ``hedges_won`` those that were
    first to answer.
    ``request_s`` is the time in requests, summed over threads.
    """

    requests: int = 0
    bytes: int = 0
    retries: int = 0
    bad_bodies: int = 0
    deadlines: int = 0
    slow_downs: int = 0
    server_errors: int = 0
    resets: int = 0
    refusals: int = 0
    other_failures: int = 0
    hedges: int = 0
    hedges_won: int = 0
    backoff_s: float = 0.0
    request_s: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False, compare=False)

    def add(self, **counts: float) -> None:
        """Add to the counters named."""
        with self._lock:
            for name, count in counts.items():
                setattr(self, name, getattr(self, name) + count)

    def failed(self, error: BaseException) -> None:
        """Count a request that failed with ``error``."""
        self.add(**{failure_kind(error): 1})

    def hedged(self, has_won: bool) -> None:
        """Count a second request that is sent, and later, if it was first to answer, that it won."""
        self.add(**{"hedges_won" if has_won else "hedges": 1})

    def snapshot(self) -> dict[str, float]:
        """The counters by name, all taken at one moment."""
        with self._lock:
            return {f.name: getattr(self, f.name) for f in fields(self) if f.init}


@dataclass(frozen=True)
class Reads:
    """The policy of range reads.

    A request that has not answered after ``deadline_s`` seconds is given up and sent again. With
    ``hedge_percentile`` p, a request that takes longer than p percent of the recent ones of about its size gets a
    second one beside it, and the first good answer wins (Dean and Barroso, *The Tail at Scale*, CACM 2013); None
    sends no second request. ``in_flight``, if given, bounds how many requests are under way at once.

    Raises:
        ValueError: a deadline that is not positive, or a percentile outside of 50 to 100.
    """

    deadline_s: float = 30.0
    hedge_percentile: float | None = None
    in_flight: InFlight | None = None
    counters: ReadCounters = field(default_factory=ReadCounters, compare=False)
    hedging: Hedging | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.deadline_s > 0:
            raise ValueError(f"deadline_s is {self.deadline_s}; give seconds above 0")
        if self.hedge_percentile is not None and not 50 <= self.hedge_percentile < 100:
            raise ValueError(f"hedge_percentile is {self.hedge_percentile}; give 50 to below 100, or None")
        if self.hedge_percentile is not None:
            object.__setattr__(self, "hedging", Hedging(self.hedge_percentile))
