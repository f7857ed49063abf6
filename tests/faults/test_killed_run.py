"""A run that is killed with SIGKILL, driver and workers, and submitted again under its name."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import Store
from made import write_dataset
from stoker.embedded import Instance
from stoker.storage import locate
from stoker.training.checkpoints import list_checkpoints
from stoker.training.runs import RunFolder

CHECKOUT = Path(__file__).parents[2]
SAMPLES, BATCH = 3001, 16
RECIPE = """
name: killed
storage: {storage}
data: {{url: {storage}/data, image_size: 32, memory_mb: 8}}
model: {{name: digitsnet}}
batch: {{total: 16, micro: 4}}
optimizer: {{lr: 0.01}}
schedule: {{epochs: 1}}
ema: {{decay: 0.9}}
checkpoint: {{every_steps: 7, keep: 2}}
workers: {{min: 2, max: 2, gpus: 0, cpus: 1, max_failures: 0}}
trace_dir: {trace}
log_every_s: 1
"""
STEPS = SAMPLES // BATCH


def start(recipe: Path, *overrides: str) -> subprocess.Popen[str]:
    command = [sys.executable, "jobs/train.py", str(recipe), *overrides]
    return subprocess.Popen(command, cwd=CHECKOUT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def steps_in(folder: Path) -> dict[int, list[int]]:
    """The samples of each step over all ranks that wrote a trace into ``folder``; a line cut short is left out."""
    found: dict[int, list[int]] = {}
    for file in folder.glob("*.jsonl"):
        for line in file.read_text().splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            found.setdefault(entry["step"], []).extend(entry["samples"])
    return found


def wait_until(condition: object, process: subprocess.Popen[str], what: str) -> None:
    deadline = time.monotonic() + 240
    while not condition():  # type: ignore[operator]
        assert process.poll() is None, f"the job ended before {what}: {process.stdout.read()[-3000:]}"  # type: ignore[union-attr]
        assert time.monotonic() < deadline, f"no {what} in time"
        time.sleep(0.02)


@pytest.mark.store
@pytest.mark.cluster
def test_a_killed_run_goes_on_from_its_checkpoint_and_sees_each_remaining_sample_once(
    cluster: Instance, store: Store, tmp_path: Path
) -> None:
    storage = store.fresh("killed")
    write_dataset(f"{storage}/data", {"train": [1000, 1001, 1000], "validation": [40]})
    recipe, traces = tmp_path / "killed.yaml", [tmp_path / "first", tmp_path / "second"]
    recipe.write_text(RECIPE.format(storage=storage, trace=traces[0]))
    run = RunFolder(locate(storage), "killed")

    first = start(recipe)
    wait_until(lambda: list_checkpoints(run.checkpoints), first, "first checkpoint")
    workers = {int(file.name.split("-")[1]) for file in traces[0].glob("*.jsonl")}
    assert len(workers) == 2
    for pid in (first.pid, *workers):
        os.kill(pid, signal.SIGKILL)
    first.wait()
    committed = list_checkpoints(run.checkpoints)[-1]
    assert 0 < committed < STEPS, "the run was to be killed in mid-epoch"

    second = start(recipe, "workers.min=1", "workers.max=1", f"trace_dir={traces[1]}")
    output, _ = second.communicate(timeout=400)
    assert second.returncode == 0, output[-3000:]
    assert f"continuing from the checkpoint at step {committed}" in output

    before, after = steps_in(traces[0]), steps_in(traces[1])
    assert sorted(after) == list(range(committed, STEPS))
    seen = [n for step in range(committed) for n in before[step]] + [n for s in after for n in after[s]]
    assert len(seen) == len(set(seen)) == STEPS * BATCH
    record = run.history().epochs[0]
    assert record.step == STEPS
    result = run.result()
    assert result is not None
    assert (result.checkpoint, result.metrics.samples) == (STEPS, 40)

    again = subprocess.run(
        [sys.executable, "jobs/train.py", str(recipe)],
        check=False,
        cwd=CHECKOUT,
        text=True,
        capture_output=True,
        timeout=120,
    )
    assert again.returncode == 0
    assert "finished already" in again.stdout
