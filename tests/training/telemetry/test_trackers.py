"""A run's curves reach TensorBoard's files, MLflow and Weights & Biases, and never a secret with them."""

from __future__ import annotations

import importlib.util
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

from stoker.errors import RecipeError
from stoker.recipe import Recipe, as_yaml, changed_keys, parse_recipe
from stoker.runs.records import KINDS, EpochRecord, Goodput, Metrics
from stoker.storage import Location, locate
from stoker.training.telemetry import tensorboard as tensorboard_module
from stoker.training.telemetry import trackers as trackers_module
from stoker.training.telemetry.outbox import Outbox
from stoker.training.telemetry.progress import ProgressSnapshot
from stoker.training.telemetry.tensorboard import EventFiles
from stoker.training.telemetry.trackers import TRACKERS, TrackerRow, Trackers, check_trackers

RECIPE = """
name: curves
storage: {root}
data: {{url: {root}/data}}
model: {{name: digitsnet}}
batch: {{total: 8, micro: 4}}
optimizer: {{lr: 0.1}}
schedule: {{epochs: 2}}
"""

NO_REPORTING = {"MLFLOW_DISABLE_TELEMETRY": "true", "WANDB_ERROR_REPORTING": "false", "WANDB_MODE": "offline"}
"""the trackers' own usage and crash reports are switched off, so that no test needs a network"""


@pytest.fixture(autouse=True)
def no_reporting(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in NO_REPORTING.items():
        monkeypatch.setenv(name, value)


def recipe(*overrides: str, root: str = "/tmp/none") -> Recipe:
    return parse_recipe(RECIPE.format(root=root), "curves.yaml", overrides)


def snapshot(step: int) -> ProgressSnapshot:
    return ProgressSnapshot(step, 0, 2.0 / step, 0.5, 0.1, 100.0, 0.25, 60.0)


RECORD = EpochRecord(
    epoch=0,
    step=8,
    seconds=10.0,
    images_per_s=100.0,
    data_wait=0.1,
    learning_rate=0.1,
    train_loss=0.5,
    train_accuracy=0.75,
    world_size=1,
    validation=Metrics(samples=9, loss=0.25, accuracy=0.875, top5=1.0, macro_accuracy=0.625),
    goodput=Goodput(wall_s=12.0, fractions=dict.fromkeys(KINDS, 0.0) | {"compute": 1.0}),
)


def events(folder: Location) -> Iterator[event_pb2.Event]:
    """What a reader of event files sees: the records of each file, in the order of names, checksums and all."""
    for name in folder.children():
        data = (folder / name).read()
        at = 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            body = data[at + 12 : at + 12 + length]
            sums = struct.unpack_from("<I", data, at + 8) + struct.unpack_from("<I", data, at + 12 + length)
            assert sums == (masked_crc32c(data[at : at + 8]), masked_crc32c(body))
            yield event_pb2.Event.FromString(body)
            at += 16 + length
        assert at == len(data)


def points(folder: Location) -> list[tuple[int, str, float]]:
    return [(event.step, value.tag, value.simple_value) for event in events(folder) for value in event.summary.value]


def test_event_files_hold_the_curves_at_report_intervals_and_epochs(tmp_path: Path) -> None:
    run, outbox = locate(tmp_path) / "runs" / "curves", Outbox()
    trackers = Trackers(recipe(), run, outbox)
    trackers.snapshot(snapshot(4))
    trackers.flush()
    assert outbox.flush()
    assert (4, "train/loss", 0.5) in points(run / "tensorboard")
    trackers.snapshot(snapshot(8))
    trackers.epoch(RECORD)
    trackers.close()
    outbox.close()
    read = points(run / "tensorboard")
    assert [(step, value) for step, tag, value in read if tag == "train/loss"] == [(4, 0.5), (8, 0.25)]
    last = {tag: value for step, tag, value in read if step == 8}
    assert {tag: value for tag, value in last.items() if tag.startswith("validation/")} == {
        "validation/loss": 0.25,
        "validation/accuracy": 0.875,
        "validation/top5": 1.0,
        "validation/macro_accuracy": 0.625,
    }
    assert last["epoch/train_loss"] == 0.5
    assert {tag: value for tag, value in last.items() if tag.startswith("goodput/")} == {
        f"goodput/{kind}": float(kind == "compute") for kind in KINDS
    }


def test_a_full_event_file_is_followed_by_a_new_one_without_a_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorboard_module, "_FILE_BYTES", 300)
    folder, outbox = locate(tmp_path), Outbox()
    files = EventFiles(folder, outbox)
    for step in range(30):
        files.scalars(step, {"loss": float(step)})
    outbox.close()
    assert len(folder.children()) > 2
    assert points(folder) == [(step, "loss", float(step)) for step in range(30)]
    assert [event.file_version for event in events(folder)].count("brain.Event:2") == len(folder.children())


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_tracker_without_its_package_is_refused_before_anything_starts(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted: None if wanted == name else known(wanted))
    named = {"mlflow": "tracking.mlflow.uri=file:/tmp/mlruns", "wandb": "tracking.wandb.project=p"}[name]
    with pytest.raises(RecipeError, match=rf"tracking.{name}: the package {name} is not installed here; install it"):
        check_trackers(recipe(named))
    check_trackers(recipe())


@pytest.mark.parametrize("uri", ["https://me:hunter2@tracking.example", "https://tracking.example/?token=hunter2"])
def test_a_recipe_with_a_trackers_secret_is_refused_and_the_secret_not_repeated(uri: str) -> None:
    with pytest.raises(RecipeError, match=r"tracking\.mlflow: uri must not hold credentials") as refused:
        recipe(f"tracking.mlflow.uri={uri}")
    assert "hunter2" not in str(refused.value)


def test_trackers_may_change_when_a_run_is_resumed() -> None:
    assert changed_keys(recipe(), recipe("tracking.mlflow.uri=file:/tmp/mlruns")) == []
    assert "mlflow" in as_yaml(recipe("tracking.mlflow.uri=file:/tmp/mlruns"))


def test_a_tracker_that_fails_is_disabled_and_the_run_continues(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outbox = Outbox()
    trackers = Trackers(recipe("tracking.mlflow.uri=nothing://nowhere"), locate(tmp_path), outbox)
    trackers.snapshot(snapshot(4))
    trackers.close()
    outbox.close()
    assert (4, "train/loss", 0.5) in points(locate(tmp_path) / "tensorboard")
    lines = [record.message for record in caplog.records if record.name == "stoker.training.telemetry.trackers"]
    assert [line.partition(":")[0] for line in lines] == ["tracker mlflow failed and is disabled for this attempt"]


class SlowTracker:
    """A tracker that takes its first point only when ``may_continue`` is set."""

    def __init__(self) -> None:
        self.may_continue = threading.Event()
        self.steps: list[int] = []

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        assert self.may_continue.wait(30)
        self.steps.append(step)

    def close(self) -> None:
        self.steps.append(-1)


def test_a_slow_tracker_never_blocks_the_step_loop_and_loses_only_what_exceeds_its_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, outbox = SlowTracker(), Outbox()
    row = TrackerRow("slow", "stoker", lambda *_: slow, is_always_on=True)
    monkeypatch.setattr(trackers_module, "TRACKERS", (TRACKERS[0], row))
    monkeypatch.setattr(trackers_module, "_QUEUE_LIMIT", 5)
    trackers = Trackers(recipe(), locate(tmp_path), outbox)
    trackers.flush()
    for step in range(1, 9):
        trackers.snapshot(snapshot(step))
        trackers._threads[0].flush(30)  # TensorBoard keeps up
    assert slow.steps == []
    slow.may_continue.set()
    trackers.close()
    outbox.close()
    assert slow.steps == [1, 2, 3, 4, 5, -1]
    assert len([tag for _, tag, _ in points(locate(tmp_path) / "tensorboard") if tag == "train/loss"]) == 8


def test_mlflow_has_one_run_with_all_curves_however_often_it_is_resumed(tmp_path: Path) -> None:
    import mlflow  # lazy: takes seconds, and reads the environment that the fixture sets

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    for step in (4, 8):
        outbox = Outbox()
        trackers = Trackers(recipe(f"tracking.mlflow.uri={uri}"), locate(tmp_path) / "run", outbox)
        trackers.snapshot(snapshot(step))
        trackers.flush(300)  # creating the database takes long on a busy machine
        trackers.close()
        outbox.close()
    client = mlflow.tracking.MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("stoker").experiment_id])
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "train/loss")] == [
        (4, 0.5),
        (8, 0.25),
    ]
    assert run.data.params["optimizer.lr"] == "0.1"
    assert run.info.status == "FINISHED"


def test_weights_and_biases_takes_the_curves_without_a_network(tmp_path: Path) -> None:
    program = (
        "import test_trackers as t\n"
        "from stoker.storage import locate\n"
        f"trackers = t.Trackers(t.recipe('tracking.wandb.project=p'), locate({str(tmp_path)!r}) / 'run', t.Outbox())\n"
        "trackers.snapshot(t.snapshot(4)); trackers.flush(100); trackers.close()\n"
    )
    environment = {"PYTHONPATH": ":".join([str(Path(__file__).parent), *sys.path]), "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=False,
        cwd=tmp_path,
        env=os.environ | NO_REPORTING | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "disabled" not in done.stderr
    (file,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    assert b"train/loss" in file.read_bytes()
    deadline = time.monotonic() + 30
    while left := processes_in(tmp_path):  # its service process ends with the one that started it
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def processes_in(folder: Path) -> list[psutil.Process]:
    """The processes that were started with ``folder`` as their HOME."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("HOME") == str(folder):
                found.append(process)
        except psutil.Error:
            continue
    return found
