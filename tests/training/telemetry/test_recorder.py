"""What a run's recorder reports of steps, on one rank."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from made import write_dataset
from stoker.dataset import Loader
from stoker.embedded.ports import free_ports
from stoker.recipe import parse_recipe
from stoker.runs.folder import RunFolder
from stoker.storage import locate
from stoker.training.telemetry.recorder import Recorder

RECIPE = """
name: told
storage: {storage}
data: {{url: {storage}/data, image_size: 32}}
model: {{name: digitsnet}}
batch: {{total: 8, micro: 4}}
optimizer: {{lr: 0.1}}
schedule: {{epochs: 1}}
log_every_s: 1.0e-9
workers: {{gpus: 0, cpus: 1}}
"""


@pytest.fixture(autouse=True)
def group() -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{free_ports(1)[0]}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_skipped_steps_are_no_progress_and_the_next_one_is_reported(tmp_path: Path) -> None:
    write_dataset(f"{tmp_path}/data", {"train": [20, 20], "validation": [4]})
    recipe = parse_recipe(RECIPE.format(storage=tmp_path), "told.yaml")
    recorder = Recorder(recipe, RunFolder(locate(tmp_path), "told"), Loader.for_training(recipe), torch.device("cpu"))
    recorder.begin(0)
    try:
        assert recorder.record_step(1, 0.1, lambda: (0.0, 0, 0)) is None
        assert recorder.record_step(2, 0.1, lambda: (0.0, 0, 0)) is None
        found = recorder.record_step(3, 0.1, lambda: (16.0, 4, 8))
        assert found is not None
        assert (found.step, found.loss, found.accuracy) == (3, 2.0, 0.5)
        record = recorder.record_epoch(0, 3, 0.1, (0.0, 0, 0), None)
        assert (record.train_loss, record.train_accuracy) == (0.0, 0.0)
    finally:
        recorder.close()
