"""How long a rank waits for the others."""

from __future__ import annotations

from stoker.training.step.communication import CommunicationTimer


class ManualTime:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


def test_only_the_wait_after_the_last_bucket_counts_as_communication() -> None:
    now = ManualTime()
    timer = CommunicationTimer(now)
    with timer.measure():
        now.time += 5
        timer.start()
        now.time += 5
        timer.start()
        now.time += 2
    with timer.measure():  # a micro-batch without an all-reduce
        now.time += 5
    assert timer.pop_seconds() == 2
    assert timer.pop_seconds() == 0
