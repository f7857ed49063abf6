"""Policy and counters of range reads: one object for all the reads of a stream.

The policy is immutable; the counters grow while reads run and are exported as metrics.
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
    """Counters of requests. Safe to use from many threads.

    ``requests`` sent; valid ``bytes`` received. Failures by kind: ``bad_bodies`` (wrong length or checksum),
    ``deadlines`` (no response in time), ``slow_downs`` (429, 503), ``server_errors`` (other 5xx), ``resets`` (the
    connection failed), ``refusals`` (missing or not permitted), ``other_failures``. ``retries`` after one of them, and
    their pauses ``backoff_s`` in seconds. ``hedges`` are second requests, ``hedges_won`` those that responded first.
    ``request_s`` is the time in requests, in seconds, summed over threads.
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
        """Count a second request when it is sent, and again if it responded first."""
        self.add(**{"hedges_won" if has_won else "hedges": 1})

    def snapshot(self) -> dict[str, float]:
        """A consistent copy of the counters, by name."""
        with self._lock:
            return {f.name: getattr(self, f.name) for f in fields(self) if f.init}


@dataclass(frozen=True)
class Reads:
    """The policy of range reads.

    A request without a response after ``deadline_s`` seconds is cancelled and retried. With ``hedge_percentile`` p, a
    request that takes longer than p percent of the recent ones of about its size is sent a second time concurrently,
    and the first valid response wins (Dean and Barroso, *The Tail at Scale*, CACM 2013); None
    disables this. ``in_flight``, if given, bounds the number of concurrent requests.

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
