"""Prometheus metrics of a run, exported by Ray's agent on each node alongside Ray's own (prefix ``ray_``).

| metric | labels | |
|---|---|---|
| stoker_train_step, _epoch, _loss, _accuracy, _learning_rate, _images_per_s, _left_s | run | at report intervals |
| stoker_train_share | run, kind | fraction of the last epoch's wall time, by the kinds of ``.goodput`` |
| stoker_train_seconds_total | run, kind | wall time so far by kind |
| stoker_train_validation_loss, _accuracy, _macro_accuracy, _top5 | run | the last evaluation |
| stoker_loader_<name> | run, rank | what ``Loader.metrics`` counts: reads, bytes, failures, cache, decode time |
"""

from __future__ import annotations

from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge

from stoker.runs.records import EpochRecord
from stoker.training.telemetry.progress import ProgressSnapshot

__all__ = ["RunMetrics"]


class RunMetrics:
    """The metrics of one rank of ``run``; each is created with its first value."""

    def __init__(self, run: str, rank: int) -> None:
        self._run, self._rank = {"run": run}, {"run": run, "rank": str(rank)}
        self._gauges: dict[str, Gauge] = {}
        self._counters: dict[str, Counter] = {}
        self._counted: dict[str, float] = {}

    def snapshot(self, snapshot: ProgressSnapshot) -> None:
        """Set the progress of the run, at a report interval."""
        for name, value in snapshot.as_dict().items():
            self._set(f"stoker_train_{name}", value, self._run)

    def epoch(self, record: EpochRecord) -> None:
        """Set the goodput and validation metrics of an epoch that has ended."""
        if record.goodput:
            for kind, fraction in record.goodput.fractions.items():
                labels = self._run | {"kind": kind}
                self._set("stoker_train_share", fraction, labels)
                self._add("stoker_train_seconds", fraction * record.goodput.wall_s, labels)
        if record.validation:
            for name, value in record.validation.figures().items():
                self._set(f"stoker_train_validation_{name}", value, self._run)

    def reads(self, metrics: Mapping[str, float]) -> None:
        """Export the loader's counters; ``metrics`` are totals since the loader was created."""
        for name, value in metrics.items():
            if name == "most_held_bytes":
                self._set(f"stoker_loader_{name}", value, self._rank)
            else:
                self._add(f"stoker_loader_{name}", value - self._counted.get(name, 0.0), self._rank)
                self._counted[name] = value

    def _set(self, name: str, value: float, labels: dict[str, str]) -> None:
        if name not in self._gauges:
            self._gauges[name] = Gauge(name, "see docs/reference/metrics.md", tag_keys=tuple(labels))
        self._gauges[name].set(value, labels)

    def _add(self, name: str, value: float, labels: dict[str, str]) -> None:
        if name not in self._counters:
            self._counters[name] = Counter(name, "see docs/reference/metrics.md", tag_keys=tuple(labels))
        if value > 0:
            self._counters[name].inc(value, labels)
