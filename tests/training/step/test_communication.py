"""How long a rank waits for the others."""

from __future__ import annotations

import torch

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


class Device:
    """A device's stream: marks are passed when the test lets it run."""

    def __init__(self) -> None:
        self.made = 0
        self.queued_ms = 0.0
        self.passed_ms = 0.0

    def mark(self) -> Moment:
        self.made += 1
        return Moment(self)


class Moment:
    """A mark on :class:`Device`, by the interface of a CUDA event."""

    def __init__(self, device: Device) -> None:
        self._device, self.at_ms = device, float("inf")

    def record(self) -> None:
        self.at_ms = self._device.queued_ms

    def query(self) -> bool:
        return self.at_ms <= self._device.passed_ms

    def elapsed_time(self, end_event: Moment) -> float:
        assert end_event.query(), "reading it would wait for the device"
        return end_event.at_ms - self.at_ms


def test_on_a_gpu_the_devices_wait_counts_once_the_device_has_passed_it() -> None:
    device, now = Device(), ManualTime()
    timer = CommunicationTimer(now, make_mark=device.mark)

    def step(wait_ms: float) -> None:
        with timer.measure():
            device.queued_ms += 500
            timer.start()
            device.queued_ms += 500
            timer.start()
            device.queued_ms += wait_ms
        now.time += 1000  # whatever the host waits for
        with timer.measure():
            device.queued_ms += 500

    step(200)
    step(300)
    assert timer.pop_seconds() == 0
    device.passed_ms = 1500
    assert timer.pop_seconds() == 0.2
    step(0)
    device.passed_ms = device.queued_ms
    assert timer.pop_seconds() == 0.3
    assert timer.pop_seconds() == 0
    for _ in range(10):
        step(100)
        device.passed_ms = device.queued_ms
        assert timer.pop_seconds() == 0.1
    assert device.made <= 6, "marks are used again"


def test_a_gpu_has_a_timer_of_events_and_a_cpu_one_of_the_host() -> None:
    assert CommunicationTimer.on(torch.device("cpu"))._make_mark is None
    assert CommunicationTimer.on(torch.device("cuda", 0))._make_mark is not None
