"""The guard around one rank's loop: bad losses, out of memory, stalls, and what ranks agree on."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from made import write_dataset
from stoker.dataset import Loader
from stoker.embedded.ports import free_ports
from stoker.errors import RecipeError, RunError, StokerError
from stoker.recipe import Recipe, parse_recipe
from stoker.runs.folder import RunFolder
from stoker.storage import locate
from stoker.training.fault_tolerance import guard as guards
from stoker.training.fault_tolerance.circumstances import circumstances_of
from stoker.training.fault_tolerance.failure_policy import RestartRequested
from stoker.training.fault_tolerance.guard import Guard, StopTraining, smaller_micro_batch
from stoker.training.fault_tolerance.lease import Lease

RECIPE = """
name: mine
storage: {storage}
data: {{url: {storage}/data, image_size: 32}}
model: {{name: digitsnet}}
batch: {{total: 4, micro: 2}}
optimizer: {{lr: 0.1}}
schedule: {{epochs: 2}}
workers: {{gpus: 0, cpus: 1, stall_timeout_s: 500}}
{more}
"""


@pytest.fixture(autouse=True)
def group() -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{free_ports(1)[0]}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def made(folder: Path, more: str = "") -> tuple[Recipe, RunFolder]:
    if not (folder / "data").exists():
        write_dataset(f"{folder}/data", {"train": [20], "validation": [4]})
    recipe = parse_recipe(RECIPE.format(storage=folder, more=more), "mine.yaml")
    return recipe, RunFolder(locate(folder), "mine")


def steps(folder: Path, losses: list[float], more: str = "", lease: str = "") -> Guard:
    """A loop of nothing but losses, and a checkpoint at its end."""
    recipe, run = made(folder, more)
    total = torch.zeros((), dtype=torch.float64)
    with Guard(recipe, run, lease, torch.device("cpu")) as guard:
        guard.fence.claim()
        for step, loss in enumerate(losses):
            if not guard.skips(step):
                total += loss
            guard.note_loss(total, step)
            guard.act_on(guard.after_step(step + 1))
        guard.require_finite(Loader.for_training(recipe).order)
    return guard


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_non_finite_loss_stops_the_run_and_names_step_checkpoint_and_samples(tmp_path: Path, bad: float) -> None:
    match = r"infinite at step 6 \(epoch 2, step 2 of it\) \(keys 0000\d\d, .*good checkpoint is of the start"
    with pytest.raises(RunError, match=match):
        steps(tmp_path, [1, 1, 1, 1, 1, 1, bad, 1])
    told = json.loads((tmp_path / "runs/mine/not_finite.json").read_text())
    recipe, _ = made(tmp_path)
    expected = Loader.for_training(recipe).order(1).samples_at(1, range(4)).tolist()
    assert (told["step"], told["samples"]) == (6, expected)
    assert told["keys"] == [f"{number:06d}" for number in expected]


def test_with_skip_each_bad_step_is_skipped_in_every_later_attempt_up_to_the_limit(tmp_path: Path) -> None:
    losses, skipping = [1.0, float("nan"), 1.0, float("inf"), float("nan")], "on_nan: skip\nnan_skips: 2"
    with pytest.raises(
        RestartRequested, match=r"step 1 was not finite; rolling back to the start, .*\(1 of at most 2\)"
    ):
        steps(tmp_path, losses, skipping)
    with pytest.raises(RestartRequested, match=r"step 3 .*\(2 of at most 2\)"):
        steps(tmp_path, losses, skipping)
    assert steps(tmp_path, losses[:4], skipping).skipped == (1, 3)
    with pytest.raises(RunError, match=r"at step 4 .*; 2 steps were skipped before \(nan_skips\)"):
        steps(tmp_path, losses, skipping)


def fail_at(folder: Path, step: int, error: Exception) -> None:
    recipe, run = made(folder)
    with Guard(recipe, run, "", torch.device("cpu")) as guard:
        guard.skips(step)
        raise error


def test_out_of_memory_names_the_micro_batch_and_one_that_may_fit(tmp_path: Path) -> None:
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    with pytest.raises(RunError, match=r"batch.micro 2 at 32 pixels \(digitsnet, step 7\); .* batch.micro=1"):
        fail_at(tmp_path, 7, error)
    assert [smaller_micro_batch(96, m) for m in (96, 24, 7, 1)] == [48, 12, 3, None]


def test_an_error_of_the_program_carries_its_step(tmp_path: Path) -> None:
    with pytest.raises(IndexError) as caught:
        fail_at(tmp_path, 11, IndexError("index 9"))
    attached = circumstances_of(caught.value)
    assert attached is not None
    assert attached.step == 11


def test_out_of_memory_that_others_hold_is_not_final(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "memory_of_others", lambda _: 3 * 2**30)
    with pytest.raises(torch.OutOfMemoryError):
        fail_at(tmp_path, 7, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))


def test_the_memory_of_others_is_what_this_process_does_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10, 80))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 50)
    assert guards.memory_of_others(torch.device("cuda", 0)) == 20
    assert guards.memory_of_others(torch.device("cpu")) == 0


def until_ended(folder: Path, lease: str) -> int:
    """Steps of a loop that only an agreement ends."""
    recipe, run = made(folder)
    done = 0
    with Guard(recipe, run, lease, torch.device("cpu")) as guard:
        while True:
            done += 1
            guard.act_on(guard.after_step(done))
            time.sleep(0.001)
            assert done < 60_000
    return done


def test_a_driver_that_is_asked_to_stop_stops_all_ranks_after_the_same_step(tmp_path: Path) -> None:
    _, run = made(tmp_path)
    with Lease(run.lease) as lease:
        lease.request_stop()
        assert until_ended(tmp_path, lease.token) > 0


def test_ranks_whose_driver_lost_its_lease_exit_and_commit_nothing(tmp_path: Path) -> None:
    recipe, run = made(tmp_path)
    with Lease(run.lease) as lease:
        with pytest.raises(RunError, match="taken over by another driver"):
            until_ended(tmp_path, "of an earlier driver")
        dropped = pytest.raises(RunError, match="this one's checkpoint is discarded")
        with Guard(recipe, run, "of an earlier driver", torch.device("cpu")) as guard, dropped:
            guard.fence.claim()
        with Guard(recipe, run, lease.token, torch.device("cpu")) as guard:
            guard.fence.claim()
            guard.fence.check()


def test_sigterm_restarts_the_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stoker.training.fault_tolerance import agreement as signals

    monkeypatch.setattr(signals, "_restart_requested", type(signals._restart_requested)())
    signals._restart_requested.set()
    with pytest.raises(RestartRequested, match="stopped to be restarted"):
        until_ended(tmp_path, "")


def test_a_checkpoint_is_due_by_the_clock(tmp_path: Path) -> None:
    recipe, run = made(tmp_path, "checkpoint: {every_minutes: 0.005}")
    with Guard(recipe, run, "", torch.device("cpu")) as guard:
        due = []
        began = time.monotonic()
        while len(due) < 2:
            if guard.after_step(len(due) + int(1000 * (time.monotonic() - began))).saves:
                due.append(time.monotonic() - began)
            assert time.monotonic() - began < 60
    assert due[0] >= 0.3
    assert due[1] >= 0.6


def test_a_stalled_rank_dumps_its_stacks_and_exits() -> None:
    code = """
import threading, time
from stoker.training.fault_tolerance.watchdog import Watchdog
def waits_for_the_others(): time.sleep(600)
Watchdog(3, 1.0)
waits_for_the_others()
"""
    ended = subprocess.run([sys.executable, "-c", code], check=False, text=True, capture_output=True, timeout=100)
    assert ended.returncode == 1
    assert "rank 3 made no progress for 1 s" in ended.stderr
    assert "waits_for_the_others" in ended.stderr


def test_the_stall_timeout_must_exceed_the_storage_timeout(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"workers.stall_timeout_s \(500\) must be above storage_timeout_s \(600\)"):
        made(tmp_path, "storage_timeout_s: 600")


def test_stopping_is_no_error_of_stoker() -> None:
    assert not issubclass(StopTraining, StokerError)
