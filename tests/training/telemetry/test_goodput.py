"""The fractions of an epoch add up to its wall time, and an injected stall shows in them."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch.distributed as dist
import torch.multiprocessing as processes

from made import write_dataset
from ranks import late_rank, work
from stoker.dataset import Loader
from stoker.dataset.decode import TrainingImages
from stoker.recipe import Recipe, parse_recipe
from stoker.runs.checkpoint_writer import CheckpointWriter
from stoker.runs.folder import RunFolder
from stoker.runs.records import KINDS, EpochRecord, Goodput
from stoker.storage import locate
from stoker.training.step.stepper import Stepper
from stoker.training.telemetry.advice import advice
from stoker.training.telemetry.events import read_events
from stoker.training.telemetry.goodput import Clock, merge_ranks

RECIPE = """
name: seen
storage: {root}
data: {{url: {root}/data, image_size: 16, block_samples: 4, memory_mb: 1, decode_threads: 1}}
model: {{name: digitsnet}}
batch: {{total: 8, micro: 4}}
optimizer: {{lr: 0.05}}
schedule: {{epochs: {epochs}}}
checkpoint: {{every_steps: 2, keep_best: false}}
log_every_s: 0.001
workers: {{gpus: 0, cpus: 1}}
"""


class ManualTime:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


def test_every_second_is_of_one_kind_and_the_innermost_block_counts() -> None:
    now = ManualTime()
    clock = Clock(now)
    now.time += 3
    with clock.measure("data_wait"):
        now.time += 2
        with clock.measure("checkpoint"):
            now.time += 1
        now.time += 2
    clock.add("communication", 0.5)
    lap = clock.lap()
    assert lap == pytest.approx(
        dict.fromkeys(KINDS, 0.0) | {"data_wait": 4, "checkpoint": 1, "communication": 0.5, "compute": 2.5}
    )
    assert clock.seconds() == dict.fromkeys(KINDS, 0.0)
    with pytest.raises(KeyError), clock.measure("coffee"):
        pass


def test_a_devices_wait_takes_no_more_of_the_wall_time_than_the_hosts_waits_leave() -> None:
    now = ManualTime()
    clock = Clock(now)
    now.time += 1
    with clock.measure("data_wait"):
        now.time += 6
    clock.add("communication", 4.0)
    lap = clock.lap()
    assert lap == pytest.approx(dict.fromkeys(KINDS, 0.0) | {"data_wait": 6, "communication": 1})


def test_the_outage_and_an_attempts_startup_are_a_restart() -> None:
    now = ManualTime()
    clock = Clock(now)
    clock.restore({"compute": 10.0, "data_wait": 5.0})
    with clock.measure("data_wait"):
        now.time += 4
    clock.mark_restart(40.0)
    now.time += 1
    assert clock.lap() == pytest.approx(
        dict.fromkeys(KINDS, 0.0) | {"compute": 11.0, "data_wait": 5.0, "restart": 40.0}
    )


def test_the_rank_that_the_others_wait_for_is_the_one_that_counts() -> None:
    nothing = dict.fromkeys(KINDS, 0.0)
    late = nothing | {"compute": 5.0, "data_wait": 4.0, "communication": 1.0}
    waiting = nothing | {"compute": 5.0, "communication": 5.0}
    merged = merge_ranks([waiting, late, waiting])
    assert (merged.rank, merged.wall_s, merged.behind_s) == (1, 10.0, 4.0)
    assert merged.fractions == {kind: late[kind] / 10 for kind in KINDS}


def test_repeated_steps_are_a_part_of_the_restarts() -> None:
    seconds = dict.fromkeys(KINDS, 0.0) | {"compute": 6.0, "restart": 4.0}
    assert merge_ranks([seconds]).repeated_s == 0
    assert merge_ranks([seconds], repeated_s=3.0).repeated_s == 3
    assert merge_ranks([seconds], repeated_s=5.0).repeated_s == 4


def test_an_epoch_that_took_no_time_has_fractions_that_add_up() -> None:
    merged = merge_ranks([dict.fromkeys(KINDS, 0.0)])
    assert merged.wall_s == 0
    assert merged.fractions == dict.fromkeys(KINDS, 0.0) | {"compute": 1.0}


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group with this process only."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def run(alone: None, tmp_path: Path) -> Callable[[int], list[EpochRecord]]:
    """Train for a number of epochs of 3 steps in this process and return the records of the run."""
    write_dataset(f"{tmp_path}/data", {"train": [24], "validation": [8]})

    def train(epochs: int = 2) -> list[EpochRecord]:
        recipe = parse_recipe(RECIPE.format(root=tmp_path, epochs=epochs), "seen.yaml")
        folder = RunFolder(locate(tmp_path), "seen")
        folder.begin(recipe)
        work(recipe)
        return list(folder.history().epochs)

    return train


def slowed(cls: type, method: str, times: int, patch: pytest.MonkeyPatch) -> list[float]:
    """From the second epoch, make ``cls.method``, called ``times`` an epoch, sleep four times as long as the first.

    The returned list collects the seconds slept.
    """
    whole, called, slept = getattr(cls, method), [], []

    def slow(*arguments: object, **named: object) -> object:
        called.append(time.monotonic())
        if len(called) > times:
            slept.append(max(1.0, 4 * (called[times] - called[0])) / times)
            time.sleep(slept[-1])
        return whole(*arguments, **named)

    patch.setattr(cls, method, slow)
    return slept


@pytest.mark.parametrize(
    ("cls", "method", "kind", "times", "advice_starts"),
    [
        (TrainingImages, "decode", "data_wait", 6, "data wait "),  # once a micro-batch; there is one decode thread
        (Stepper, "run", "compute", 3, ""),  # not a loss: the advice is about the largest of those
        (CheckpointWriter, "save", "checkpoint", 1, "checkpoint "),
    ],
)
def test_an_injected_stall_shows_in_the_fractions(
    run: Callable[[int], list[EpochRecord]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    cls: type,
    method: str,
    kind: str,
    times: int,
    advice_starts: str,
) -> None:
    monkeypatch.setattr(Loader, "_reads_on", lambda *_: False)  # which would hide the decoding of a short epoch
    slept = slowed(cls, method, times, monkeypatch)
    found = run(2)[-1].goodput
    assert found is not None
    stall = sum(slept[:times])
    assert sum(found.fractions.values()) == pytest.approx(1)
    # decoding runs a few micro-batches ahead, during evaluation and checkpoint too, so a part of its stall is hidden
    assert found.fractions[kind] >= stall / found.wall_s - 0.3
    assert max(found.fractions, key=lambda name: found.fractions[name]) == kind
    assert found.advice.startswith(advice_starts)
    assert f"seen: {found.advice}" in capsys.readouterr().out


def test_a_resumed_attempt_counts_the_outage_as_restart(
    run: Callable[[int], list[EpochRecord]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole, steps = Stepper.run, []

    def dies_once(self: Stepper, *arguments: object) -> object:
        steps.append(1)
        if len(steps) == 6:
            raise KeyboardInterrupt
        return whole(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Stepper, "run", dies_once)
    with pytest.raises(KeyboardInterrupt):
        run(2)
    time.sleep(2.0)
    first, second = run(2)
    assert first.goodput is not None
    assert second.goodput is not None
    assert first.goodput.fractions["restart"] == 0
    assert second.goodput.fractions["restart"] * second.goodput.wall_s > 2.0
    assert sum(second.goodput.fractions.values()) == pytest.approx(1)
    events = list(read_events(locate(tmp_path) / "runs" / "seen" / "events"))
    assert [(event["step"], event["world_size"]) for event in events if event["kind"] == "attempt"] == [(0, 1), (4, 1)]
    assert [event["epoch"] for event in events if event["kind"] == "epoch"] == [0, 1]
    assert [event["at"] for event in events] == sorted(event["at"] for event in events)


def test_late_data_on_one_of_two_ranks_is_not_counted_as_communication(tmp_path: Path) -> None:
    write_dataset(f"{tmp_path}/data", {"train": [24], "validation": [8]})
    recipe = parse_recipe(RECIPE.format(root=tmp_path, epochs=2), "seen.yaml", ["workers.max=2"])
    folder = RunFolder(locate(tmp_path), "seen")
    folder.begin(recipe)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes.spawn(late_rank, (port, recipe, 1.0), nprocs=2)
    found = folder.history().epochs[-1].goodput
    assert found is not None
    assert found.rank == 1
    assert found.behind_s > 1.5  # of the 3 s that the other one waited
    assert max(found.fractions, key=lambda kind: found.fractions[kind]) == "data_wait"
    assert "; the other ranks wait for rank 1" in found.advice


def goodput(**fractions: float) -> Goodput:
    rest = {"compute": 1 - sum(fractions.values())}
    return Goodput(wall_s=100.0, fractions=dict.fromkeys(KINDS, 0.0) | rest | fractions)


@pytest.mark.parametrize(
    ("fractions", "metrics", "line"),
    [
        (
            {"data_wait": 0.31},
            {"decode_s": 95.0, "read_request_s": 20.0},
            "data wait 31%: the decode threads are saturated (95% busy); try data.decode_threads above 1 with more "
            "workers.cpus, or smaller images",
        ),
        (
            {"data_wait": 0.31},
            {"decode_s": 20.0, "read_request_s": 1500.0, "read_bytes": 5e9},
            "data wait 31%: reads are the bottleneck (15.0 of 16 in flight on average, 50 MB/s, decode threads "
            "20% busy); try data.read_threads above 16, data.cache_dir for later epochs",
        ),
        (
            {"data_wait": 0.31},
            {"decode_s": 20.0, "read_request_s": 1500.0, "read_slow_downs": 7.0},
            "data wait 31%: the store failed reads (7 slow downs), which were retried; check its limits, or try "
            "data.cache_dir",
        ),
        ({"checkpoint": 0.2}, {}, "checkpoint 20%: the step loop is blocked by checkpoints; try "
         "checkpoint.every_steps above 2, or a faster store"),
        ({"evaluation": 0.2}, {}, "evaluation 20%: try evaluation.every_epochs above 1"),
        ({"restart": 0.2}, {}, "restart 20%: 20 s went into restarts; check why workers failed, or try "
         "checkpoint.every_steps below 2"),
        ({"data_wait": 0.02}, {}, "compute 98%: most of the time is spent in the model; more workers, "
         "precision: bfloat16, compile: true, or a larger batch.micro speed it up"),
    ],
)  # fmt: skip
def test_the_advice_follows_the_evidence(fractions: dict[str, float], metrics: dict[str, float], line: str) -> None:
    recipe: Recipe = parse_recipe(RECIPE.format(root="/tmp/none", epochs=1), "seen.yaml")
    assert advice(goodput(**fractions), metrics, recipe) == line


def test_compilation_is_not_advised_where_it_would_be_refused() -> None:
    overrides = ["reproducible=true", "workers.gpus=1"]
    for count, is_advised in ((0, True), (1, True), (2, False)):
        recipe = parse_recipe(RECIPE.format(root="/tmp/none", epochs=1), "seen.yaml", overrides[:count])
        assert ("compile: true" in advice(goodput(data_wait=0.02), {}, recipe)) == is_advised


def test_a_late_rank_is_named() -> None:
    recipe = parse_recipe(RECIPE.format(root="/tmp/none", epochs=1), "seen.yaml")
    late = goodput(checkpoint=0.2).model_copy(update={"rank": 3, "behind_s": 12.0})
    assert advice(late, {}, recipe).endswith("; the other ranks wait for rank 3, 12% of the time")
