"""What a checkpoint of a run holds: every part of ``PARTS`` and every field of ``TrainState`` comes back."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from made import write_dataset
from stoker.dataset import Loader, read_manifest
from stoker.embedded.ports import free_ports
from stoker.errors import RunError
from stoker.models.initialize import training_model
from stoker.recipe import Recipe, parse_recipe
from stoker.runs.folder import RunFolder
from stoker.storage import locate
from stoker.training import checkpointing
from stoker.training.checkpointing import PARTS, Checkpointing, TrainState
from stoker.training.fault_tolerance.guard import Guard
from stoker.training.step.stepper import Stepper
from stoker.training.telemetry.recorder import Recorder

CPU = torch.device("cpu")
RECIPE = """
name: kept
storage: {storage}
data: {{url: {storage}/data, image_size: 32}}
model: {{name: digitsnet}}
batch: {{total: 8, micro: 4}}
optimizer: {{lr: 0.1, momentum: 0.9}}
schedule: {{epochs: 3}}
ema: {{decay: 0.9}}
reproducible: true
workers: {{gpus: 0, cpus: 1}}
"""


@pytest.fixture(autouse=True)
def group() -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{free_ports(1)[0]}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()
    torch.use_deterministic_algorithms(False)


EPOCH = {
    "epoch": 0, "step": 22, "seconds": 9.0, "images_per_s": 50.0, "data_wait": 0.0, "learning_rate": 0.1,
    "train_loss": 1.0, "train_accuracy": 0.5, "world_size": 1, "goodput": {"wall_s": 9.0, "shares": {"compute": 1.0}},
}  # fmt: skip


class Rank:
    """The parts of one rank, with weights of its own ``seed``."""

    def __init__(self, folder: Path, guard: Guard, recipe: Recipe, seed: int) -> None:
        torch.manual_seed(seed)
        self.loader = Loader.for_training(recipe)
        self.stepper = Stepper(recipe, training_model(recipe, 3), CPU, self.loader.steps)
        self.recorder = Recorder(recipe, RunFolder(locate(folder), "kept"), self.loader, CPU)
        self.checkpoints = Checkpointing(
            recipe,
            read_manifest(locate(folder / "data")).fingerprint,
            RunFolder(locate(folder), "kept"),
            guard,
            stepper=self.stepper,
            loader=self.loader,
            recorder=self.recorder,
        )

    def train(self, steps: int) -> None:
        batches = iter(self.loader)
        for step in range(steps):
            together = [next(batches) for _ in self.loader.micro_batches]
            self.stepper.run(together, step, sum(batch.size for batch in together))

    def tensors(self) -> dict[str, torch.Tensor]:
        found = {f"{part.file}/{name}": value for part in PARTS for name, value in part.save(self.stepper).items()}
        return {name: value.clone() for name, value in found.items()}

    def close(self) -> None:
        self.checkpoints.close()
        self.recorder.close()


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    write_dataset(f"{tmp_path}/data", {"train": [20, 20], "validation": [4]})
    return parse_recipe(RECIPE.format(storage=tmp_path), "kept.yaml")


@pytest.fixture
def guard(tmp_path: Path, recipe: Recipe) -> Iterator[Guard]:
    with Guard(recipe, RunFolder(locate(tmp_path), "kept"), "", CPU) as entered:
        yield entered


def test_every_part_and_position_comes_back_in_another_process_state(
    tmp_path: Path, guard: Guard, recipe: Recipe
) -> None:
    before = Rank(tmp_path, guard, recipe, seed=1)
    assert before.checkpoints.restore() == 0
    before.train(3)
    assert before.checkpoints.is_best(0.75)
    before.checkpoints.save(3, (12.5, 20.0, 24.0), accuracy=0.75)
    before.close()
    after = Rank(tmp_path, guard, recipe, seed=2)
    assert after.checkpoints.restore() == 3
    after.close()
    wanted, found = before.tensors(), after.tensors()
    assert {name.partition("/")[0] for name in wanted} == {part.file for part in PARTS}
    assert wanted.keys() == found.keys()
    assert [name for name in wanted if not torch.equal(wanted[name], found[name])] == []
    assert after.loader.state_dict()["step"] == 3
    assert after.stepper.totals.tolist() == [12.5, 20.0, 24.0]
    assert not after.checkpoints.is_best(0.75)
    assert after.checkpoints.is_best(0.76)


def test_workers_that_others_have_replaced_commit_nothing(tmp_path: Path, guard: Guard, recipe: Recipe) -> None:
    old = Rank(tmp_path, guard, recipe, seed=1)
    old.checkpoints.restore()
    with Guard(recipe, RunFolder(locate(tmp_path), "kept"), "", CPU) as later:
        new = Rank(tmp_path, later, recipe, seed=1)
        new.checkpoints.restore()
        old.checkpoints.save(1, (1.0, 1.0, 8.0))
        with pytest.raises(RunError, match="superseded"):
            old.close()
        new.checkpoints.save(2, (1.0, 1.0, 8.0))
        new.close()
    newest = RunFolder(locate(tmp_path), "kept").latest_checkpoint()
    assert newest is not None
    assert newest.step == 2


def test_the_state_file_has_exactly_the_fields_of_train_state(tmp_path: Path, guard: Guard, recipe: Recipe) -> None:
    rank = Rank(tmp_path, guard, recipe, seed=1)
    rank.checkpoints.restore()
    rank.checkpoints.save(1, (1.0, 1.0, 8.0))
    rank.close()
    checkpoint = RunFolder(locate(tmp_path), "kept").latest_checkpoint()
    assert checkpoint is not None
    assert set(checkpoint.state()) == set(TrainState.model_fields)


def test_every_field_is_given_when_a_checkpoint_is_saved(
    tmp_path: Path, guard: Guard, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A field with a default would be stored as that, whatever the run's value is."""
    given: set[str] = set()

    def spy(**fields: Any) -> TrainState:
        given.update(fields)
        return TrainState(**fields)

    rank = Rank(tmp_path, guard, recipe, seed=1)
    rank.checkpoints.restore()
    monkeypatch.setattr(checkpointing, "TrainState", spy)
    rank.checkpoints.save(1, (1.0, 1.0, 8.0))
    rank.close()
    assert given == set(TrainState.model_fields)


@pytest.mark.parametrize("file", ["model.safetensors", "ema.safetensors"])
def test_a_checkpoint_without_weights_is_refused_and_not_replaced_by_fresh_ones(
    tmp_path: Path, guard: Guard, recipe: Recipe, file: str
) -> None:
    rank = Rank(tmp_path, guard, recipe, seed=1)
    rank.checkpoints.restore()
    rank.checkpoints.save(1, (1.0, 1.0, 8.0))
    rank.close()
    manifest = tmp_path / "runs/kept/checkpoints/00000001.json"
    content = json.loads(manifest.read_text())
    del content["files"][file]
    manifest.write_text(json.dumps(content))
    other = Rank(tmp_path, guard, recipe, seed=1)
    with pytest.raises(RunError, match=rf"the checkpoint has no {re.escape(file)}; delete the manifest 00000001\.json"):
        other.checkpoints.restore()
    other.close()


def test_a_checkpoint_of_another_data_set_is_refused(tmp_path: Path, guard: Guard, recipe: Recipe) -> None:
    rank = Rank(tmp_path, guard, recipe, seed=1)
    rank.checkpoints.restore()
    rank.checkpoints.save(1, (1.0, 1.0, 8.0))
    rank.close()
    other = Rank(tmp_path, guard, recipe, seed=1)
    other.checkpoints._fingerprint = "sha256:other"
    with pytest.raises(RunError, match=r"run 'kept' was trained on another data set .* restore the data set or choose"):
        other.checkpoints.restore()
    other.close()


def test_a_state_that_lacks_later_fields_is_read_and_numbers_survive_as_they_are() -> None:
    stored = {
        "position": {"epoch": 1, "step": 4},
        "step": 26,
        "totals": [1.5, math.nan, 3.0],
        "recorder": {"clock": {"compute": 1.0}, "repeated_s": 0.0, "at": 5.0, "history": [EPOCH]},
        "recipe": {"name": "kept"},
        "dataset_fingerprint": "sha256:0",
        "versions": {"torch": "2.15.0"},
    }
    state = TrainState.model_validate(stored)
    assert (state.best_accuracy, state.threads, state.skipped_steps) == (-1.0, None, ())
    again = TrainState.model_validate(json.loads(json.dumps(state.model_dump(mode="json"))))
    assert math.isnan(again.totals[1])
    assert (again.position, again.step, again.recorder) == (state.position, 26, state.recorder)
    assert state.model_dump(mode="json")["recorder"]["history"][0]["goodput"]["shares"] == {"compute": 1.0}
