"""Goodput: what each epoch's wall time went into, and in one line what to do about the largest loss.

Every second of an epoch, from the end of the one before to its own, has one of six names:

- ``data_wait``: the step loop asked for a batch and there was none (on a GPU the host asks a step or two ahead, so a
  short wait may cost nothing);
- ``communication``: the host waited for the other ranks' sums. On a CPU that is the part of the all-reduce that the
  backward pass did not hide. On a GPU the host does not wait there: it runs ahead, and the device's own waiting is
  part of compute;
- ``checkpoint``: the step loop stood still for a checkpoint (its writing goes on beside the loop and is not counted);
- ``evaluation``: the validation split;
- ``restart``: from the checkpoint that an attempt went on from to its first step's end: the work done again, the
  outage, and the start;
- ``compute``: the rest, so that the six are all of the wall time, always.

**Over ranks.** Ranks meet at each step's sum, so a rank that is late makes all others wait, and on them its waiting
for data, say, looks like communication. The shares of an epoch are therefore those of one rank, the one that waited
least for the others: the one that they waited for. What it did is what the time went into, and its own communication
is what the sums cost when nobody is late.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from stoker.runs.records import KINDS, Goodput

__all__ = ["Clock", "CommunicationTimer", "merged"]


class Clock:
    """Accounts a rank's time since it was made, or since the last :meth:`lap`. For one thread."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._open: list[str] = []
        self._last = self._began = now()
        self._seconds = dict.fromkeys(KINDS, 0.0)
        self._earlier = dict.fromkeys(KINDS, 0.0)
        self.ever = dict.fromkeys(KINDS, 0.0)
        """seconds by kind since the clock was made, of what was timed by :meth:`spent`; laps do not reset it"""

    @contextmanager
    def spent(self, kind: str) -> Iterator[None]:
        """What happens inside counts as ``kind``; inside of another ``spent`` the inner one counts.

        Raises:
            KeyError: there is no such kind.
        """
        self._seconds[kind] += 0.0
        self._turn()
        self._open.append(kind)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def add(self, kind: str, seconds: float) -> None:
        """Of the compute since the lap began, ``seconds`` were ``kind``: what was measured elsewhere."""
        self._seconds[kind] += seconds

    def carry(self, seconds: Mapping[str, float]) -> None:
        """Count an earlier attempt's part of the epoch, as :meth:`so_far` told it."""
        for kind in KINDS:
            self._earlier[kind] += seconds.get(kind, 0.0)

    def restarted(self, seconds: float) -> None:
        """All that this attempt has measured was a restart, and with what went before it took ``seconds``."""
        self._earlier["restart"] += max(seconds, self._now() - self._began)
        self._begin()

    def so_far(self) -> dict[str, float]:
        """Seconds of the lap under way by kind; their sum is its wall time."""
        self._turn()
        others = {kind: value for kind, value in self._seconds.items() if kind != "compute"}
        compute = self._now() - self._began - sum(others.values())
        return {kind: others.get(kind, max(0.0, compute)) + self._earlier[kind] for kind in KINDS}

    def lap(self) -> dict[str, float]:
        """As :meth:`so_far`, and the next lap begins."""
        found = self.so_far()
        self._earlier = dict.fromkeys(KINDS, 0.0)
        self._begin()
        return found

    def _begin(self) -> None:
        self._last = self._began = self._now()
        self._seconds = dict.fromkeys(KINDS, 0.0)

    def _turn(self) -> None:
        now = self._now()
        if self._open:
            self._seconds[self._open[-1]] += now - self._last
            self.ever[self._open[-1]] += now - self._last
        self._last = now


class CommunicationTimer:
    """How long the host waits for the other ranks in backward passes, in seconds.

    The all-reduce of a bucket runs beside the rest of the backward pass. What it delays is the time from the start of
    the last bucket's, when this rank's gradients are complete, to the end of the pass, which waits for all of them.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._last_begun: float | None = None
        self.seconds = 0.0

    def begun(self) -> None:
        """An all-reduce begins: for the communication hook."""
        self._last_begun = self._now()

    @contextmanager
    def around(self) -> Iterator[None]:
        """Around a backward pass, or any call in which the host does nothing but wait."""
        self._last_begun = None
        yield
        if self._last_begun is not None:
            self.seconds += self._now() - self._last_begun

    def take(self) -> float:
        """The seconds since they were last taken."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


def merged(ranks: Sequence[Mapping[str, float]], *, repeated_s: float = 0.0) -> Goodput:
    """The goodput of an epoch from the seconds by kind of each rank, as the module says.

    ``repeated_s`` of the restarts were spent on steps that had been done before.
    """
    critical = min(range(len(ranks)), key=lambda rank: (ranks[rank]["communication"], rank))
    seconds = ranks[critical]
    wall = sum(seconds[kind] for kind in KINDS)
    longest = max(rank["communication"] for rank in ranks)
    return Goodput(
        wall_s=wall,
        shares={kind: seconds[kind] / wall if wall > 0 else float(kind == "compute") for kind in KINDS},
        rank=critical,
        behind_s=longest - seconds["communication"],
        repeated_s=min(repeated_s, seconds["restart"]),
    )
