"""The shares of an epoch are all of its wall time, and a stall that was put in is found again."""

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
from stoker.dataset.decode import TrainingImages
from stoker.recipe import Recipe, parse_recipe
from stoker.runs.checkpoint_writer import CheckpointWriter
from stoker.runs.folder import RunFolder
from stoker.runs.records import KINDS, EpochRecord, Goodput
from stoker.storage import locate
from stoker.training.step.stepper import Stepper
from stoker.training.telemetry.advice import advice
from stoker.training.telemetry.events import read_events
from stoker.training.telemetry.goodput import Clock, CommunicationTimer, merged

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


class Hands:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


def test_every_second_has_one_name_and_inner_times_are_taken_out_of_outer_ones() -> None:
    now = Hands()
    clock = Clock(now)
    now.time += 3
    with clock.spent("data_wait"):
        now.time += 2
        with clock.spent("checkpoint"):
            now.time += 1
        now.time += 2
    clock.add("communication", 0.5)
    lap = clock.lap()
    assert lap == pytest.approx(
        dict.fromkeys(KINDS, 0.0) | {"data_wait": 4, "checkpoint": 1, "communication": 0.5, "compute": 2.5}
    )
    assert clock.so_far() == dict.fromkeys(KINDS, 0.0)
    with pytest.raises(KeyError), clock.spent("coffee"):
        pass


def test_what_an_attempt_did_before_its_first_step_and_the_outage_are_a_restart() -> None:
    now = Hands()
    clock = Clock(now)
    clock.carry({"compute": 10.0, "data_wait": 5.0})
    with clock.spent("data_wait"):
        now.time += 4
    clock.restarted(40.0)
    now.time += 1
    assert clock.lap() == pytest.approx(
        dict.fromkeys(KINDS, 0.0) | {"compute": 11.0, "data_wait": 5.0, "restart": 40.0}
    )


def test_only_the_wait_after_the_last_bucket_counts_as_communication() -> None:
    now = Hands()
    wait = CommunicationTimer(now)
    with wait.around():
        now.time += 5
        wait.begun()
        now.time += 5
        wait.begun()
        now.time += 2
    with wait.around():  # a micro-batch whose gradients stay here
        now.time += 5
    assert wait.take() == 2
    assert wait.take() == 0


def test_the_rank_that_the_others_wait_for_tells_where_the_time_went() -> None:
    nothing = dict.fromkeys(KINDS, 0.0)
    late = nothing | {"compute": 5.0, "data_wait": 4.0, "communication": 1.0}
    waiting = nothing | {"compute": 5.0, "communication": 5.0}
    found = merged([waiting, late, waiting])
    assert (found.rank, found.wall_s, found.behind_s) == (1, 10.0, 4.0)
    assert found.shares == {kind: late[kind] / 10 for kind in KINDS}


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def run(alone: None, tmp_path: Path) -> Callable[[int], list[EpochRecord]]:
    """Trains for so many epochs of 3 steps in this process and returns the records of the run."""
    write_dataset(f"{tmp_path}/data", {"train": [24], "validation": [8]})

    def train(epochs: int = 2) -> list[EpochRecord]:
        recipe = parse_recipe(RECIPE.format(root=tmp_path, epochs=epochs), "seen.yaml")
        folder = RunFolder(locate(tmp_path), "seen")
        folder.begin(recipe)
        work(recipe)
        return list(folder.history().epochs)

    return train


def slowed(cls: type, method: str, times: int, patch: pytest.MonkeyPatch) -> list[float]:
    """From its second epoch on, ``cls.method``, called ``times`` an epoch, sleeps for four times the first one's time.

    The list holds the seconds that it slept.
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
    ("cls", "method", "kind", "times", "said"),
    [
        (TrainingImages, "decode", "data_wait", 6, "data wait "),  # once a micro-batch; the decode thread is one
        (Stepper, "run", "compute", 3, ""),  # no loss: the advice is about the largest of those
        (CheckpointWriter, "save", "checkpoint", 1, "checkpoint "),
    ],
)
def test_a_stall_that_is_put_in_is_found_again(
    run: Callable[[int], list[EpochRecord]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    cls: type,
    method: str,
    kind: str,
    times: int,
    said: str,
) -> None:
    slept = slowed(cls, method, times, monkeypatch)
    told = run(2)[-1].goodput
    assert told is not None
    stall = sum(slept[:times])
    assert sum(told.shares.values()) == pytest.approx(1)
    # decoding runs a few micro-batches ahead, beside evaluation and checkpoint: a part of its stall is hidden
    assert told.shares[kind] == pytest.approx(stall / told.wall_s, abs=0.3)
    assert max(told.shares, key=lambda name: told.shares[name]) == kind
    assert told.advice.startswith(said)
    assert f"seen: {told.advice}" in capsys.readouterr().out


def test_an_attempt_that_goes_on_counts_the_outage_as_restart(
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
    assert first.goodput.shares["restart"] == 0
    assert second.goodput.shares["restart"] * second.goodput.wall_s > 2.0
    assert sum(second.goodput.shares.values()) == pytest.approx(1)
    events = list(read_events(locate(tmp_path) / "runs" / "seen" / "events"))
    assert [(event["step"], event["world_size"]) for event in events if event["kind"] == "attempt"] == [(0, 1), (4, 1)]
    assert [event["epoch"] for event in events if event["kind"] == "epoch"] == [0, 1]
    assert [event["at"] for event in events] == sorted(event["at"] for event in events)


def test_data_that_comes_late_on_one_of_two_ranks_is_no_communication(tmp_path: Path) -> None:
    write_dataset(f"{tmp_path}/data", {"train": [24], "validation": [8]})
    recipe = parse_recipe(RECIPE.format(root=tmp_path, epochs=2), "seen.yaml", ["workers.max=2"])
    folder = RunFolder(locate(tmp_path), "seen")
    folder.begin(recipe)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes.spawn(late_rank, (port, recipe, 1.0), nprocs=2)
    told = folder.history().epochs[-1].goodput
    assert told is not None
    assert told.rank == 1
    assert told.behind_s > 1.5  # of the 3 s that the other one waited
    assert max(told.shares, key=lambda kind: told.shares[kind]) == "data_wait"
    assert "; the other ranks wait for rank 1" in told.advice


def goodput(**shares: float) -> Goodput:
    return Goodput(wall_s=100.0, shares=dict.fromkeys(KINDS, 0.0) | {"compute": 1 - sum(shares.values())} | shares)


@pytest.mark.parametrize(
    ("shares", "metrics", "line"),
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
            "data wait 31%: the reads are what it waits for (15.0 of 16 under way at a time, 50 MB/s, decode threads "
            "20% busy); try data.read_threads above 16, data.cache_dir for the epochs to come",
        ),
        (
            {"data_wait": 0.31},
            {"decode_s": 20.0, "read_request_s": 1500.0, "read_slow_downs": 7.0},
            "data wait 31%: the store failed reads (7 slow downs), which were tried again; see what limits it, or try "
            "data.cache_dir",
        ),
        ({"checkpoint": 0.2}, {}, "checkpoint 20%: the step loop stands still for checkpoints; try "
         "checkpoint.every_steps above 2, or a faster store"),
        ({"evaluation": 0.2}, {}, "evaluation 20%: try evaluation.every_epochs above 1"),
        ({"restart": 0.2}, {}, "restart 20%: 20 s went into restarts; see why workers ended, or try "
         "checkpoint.every_steps below 2"),
        ({"data_wait": 0.02}, {}, "compute 98%: the model is what takes the time; more workers, precision: bfloat16, "
         "compile: true, or a larger batch.micro make it faster"),
    ],
)  # fmt: skip
def test_the_advice_follows_the_evidence(shares: dict[str, float], metrics: dict[str, float], line: str) -> None:
    recipe: Recipe = parse_recipe(RECIPE.format(root="/tmp/none", epochs=1), "seen.yaml")
    assert advice(goodput(**shares), metrics, recipe) == line


def test_a_rank_that_is_late_is_named() -> None:
    recipe = parse_recipe(RECIPE.format(root="/tmp/none", epochs=1), "seen.yaml")
    late = goodput(checkpoint=0.2).model_copy(update={"rank": 3, "behind_s": 12.0})
    assert advice(late, {}, recipe).endswith("; the other ranks wait for rank 3, 12% of the time")
