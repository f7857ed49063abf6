"""Goodput: what each epoch's wall time was spent on.

Every second of an epoch, from the end of the previous epoch to its own, is of one of six kinds:

- ``data_wait``: the step loop asked for a batch and none was ready (on a GPU the host asks a step or two ahead, so a
  short wait may cost nothing);
- ``communication``: all-reduces with the other ranks were waited for, the part that the backward pass did not hide. On
  a CPU the host waits there. On a GPU the host runs ahead and the device waits: its seconds count, by events on its
  stream that are read a step or two later, but no more of them than the host's other kinds leave of the wall time (a
  host may wait for data while its device waits for the ranks);
- ``checkpoint``: the step loop was blocked by a checkpoint (the write itself is asynchronous and not counted);
- ``evaluation``: the validation split;
- ``restart``: from the checkpoint that an attempt resumed from to the end of its first step: the repeated work, the
  outage, and the startup;
- ``compute``: the rest, so that the six always add up to the wall time.

**Over ranks.** Ranks synchronize at each step's all-reduce, so a late rank makes all others wait, and on them its
waiting for data, say, looks like communication. The fractions of an epoch are therefore those of one rank: the one
that waited least for the others, which is the one that they waited for. What it did is what the time was spent on, and
its own communication is the cost of the all-reduces when no rank is late.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from stoker.runs.records import KINDS, Goodput

__all__ = ["Clock", "merge_ranks"]


class Clock:
    """A stopwatch that attributes a rank's time to kinds, since its start or the last :meth:`lap`. Not thread-safe."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._open: list[str] = []
        self._last = self._start = now()
        self._seconds = dict.fromkeys(KINDS, 0.0)
        self._earlier = dict.fromkeys(KINDS, 0.0)
        self.total_s = dict.fromkeys(KINDS, 0.0)
        """seconds by kind since the clock was created, of what :meth:`measure` timed; laps do not reset it"""

    @contextmanager
    def measure(self, kind: str) -> Iterator[None]:
        """Attribute the time inside the block to ``kind``; of nested blocks, the innermost counts.

        Raises:
            KeyError: ``kind`` is unknown.
        """
        self._seconds[kind] += 0.0
        self._attribute()
        self._open.append(kind)
        try:
            yield
        finally:
            self._attribute()
            self._open.pop()

    def add(self, kind: str, seconds: float) -> None:
        """Attribute ``seconds`` of the lap's compute to ``kind``; for times measured elsewhere."""
        self._seconds[kind] += seconds

    def restore(self, seconds: Mapping[str, float]) -> None:
        """Add an earlier attempt's part of the epoch, as :meth:`seconds` returned it."""
        for kind in KINDS:
            self._earlier[kind] += seconds.get(kind, 0.0)

    def mark_restart(self, seconds: float) -> None:
        """Count all that this attempt has measured as a restart, which took ``seconds`` with the outage before it."""
        self._earlier["restart"] += max(seconds, self._now() - self._start)
        self._start_lap()

    def seconds(self) -> dict[str, float]:
        """Return the seconds of the current lap by kind; their sum is its wall time."""
        self._attribute()
        others = {kind: value for kind, value in self._seconds.items() if kind != "compute"}
        compute = self._now() - self._start - sum(others.values())
        others["communication"] = max(0.0, others["communication"] + min(0.0, compute))
        return {kind: others.get(kind, max(0.0, compute)) + self._earlier[kind] for kind in KINDS}

    def lap(self) -> dict[str, float]:
        """Return :meth:`seconds` and start the next lap."""
        seconds = self.seconds()
        self._earlier = dict.fromkeys(KINDS, 0.0)
        self._start_lap()
        return seconds

    def _start_lap(self) -> None:
        self._last = self._start = self._now()
        self._seconds = dict.fromkeys(KINDS, 0.0)

    def _attribute(self) -> None:
        now = self._now()
        if self._open:
            self._seconds[self._open[-1]] += now - self._last
            self.total_s[self._open[-1]] += now - self._last
        self._last = now


def merge_ranks(ranks: Sequence[Mapping[str, float]], *, repeated_s: float = 0.0) -> Goodput:
    """Return the goodput of an epoch from the seconds by kind of each rank, as the module docstring describes.

    ``repeated_s`` of the restarts were spent on repeated steps.
    """
    critical = min(range(len(ranks)), key=lambda rank: (ranks[rank]["communication"], rank))
    seconds = ranks[critical]
    wall = sum(seconds[kind] for kind in KINDS)
    longest = max(rank["communication"] for rank in ranks)
    return Goodput(
        wall_s=wall,
        fractions={kind: seconds[kind] / wall if wall > 0 else float(kind == "compute") for kind in KINDS},
        rank=critical,
        behind_s=longest - seconds["communication"],
        repeated_s=min(repeated_s, seconds["restart"]),
    )
