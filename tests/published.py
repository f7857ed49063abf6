"""Small published models for tests: a digitsnet with random weights, and a finished run of it."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch

from made import write_dataset
from stoker.dataset import Loader, read_manifest
from stoker.evaluation import evaluate, parity_samples
from stoker.models import build_model
from stoker.models.normalize import Normalize
from stoker.recipe import Recipe, parse_recipe
from stoker.runs.checkpoint_writer import CheckpointWriter
from stoker.runs.folder import RunFolder
from stoker.runs.records import History, Result
from stoker.storage import Location, locate

__all__ = ["finished_run"]

RECIPE = """
name: run
storage: {storage}
data: {{url: {storage}/data, image_size: 32, block_samples: 4, memory_mb: 1}}
model: {{name: digitsnet}}
batch: {{total: 8, micro: 8}}
optimizer: {{lr: 0.1}}
schedule: {{epochs: 1}}
workers: {{gpus: 0, cpus: 1}}
"""


def finished_run(
    storage: str | Path, *, classes: int = 3, seed: int = 0, is_finished: bool = True, has_ema: bool = False
) -> Location:
    """A run called ``run`` below ``storage`` with random weights and measured metrics; returns the storage.

    With ``has_ema`` the evaluated weights are its moving average, and model.safetensors holds other ones.
    """
    root = locate(storage)
    write_dataset(f"{root}/data", {"train": [9], "validation": [12, 11]}, classes=classes)
    recipe = parse_recipe(RECIPE.format(storage=root), "run.yaml")
    torch.manual_seed(seed)
    model = build_model("digitsnet", classes=classes)
    folder = RunFolder(root, "run")
    folder.begin(recipe)
    writer = CheckpointWriter(folder.checkpoints, 2)
    weights = {"model.safetensors": model.state_dict()}
    if has_ema:
        other = build_model("digitsnet", classes=classes)
        weights = {"model.safetensors": other.state_dict(), "ema.safetensors": model.state_dict()}
    writer.save(1, weights, {"step": 1})
    writer.close()
    if is_finished:
        folder.write_history(History())
        folder.write_result(_result(recipe, model, root))
        (folder.location / "report.html").write(b"<!doctype html><title>run</title>")
    return root


def _result(recipe: Recipe, model: torch.nn.Module, root: Location) -> Result:
    normalize = Normalize(recipe.data.mean, recipe.data.std)
    manifest = read_manifest(root / "data")
    evaluated = evaluate(model, normalize, Loader.for_evaluation(recipe), len(manifest.classes))
    return Result(
        run="run",
        checkpoint=1,
        epochs=1,
        seconds=1.0,
        images_per_s=9.0,
        metrics=evaluated.metrics,
        confusion=tuple(tuple(row) for row in evaluated.confusion.tolist()),
        parity=parity_samples(model, normalize, recipe),
        parity_precision="float32",
        classes=manifest.classes,
        dataset_url=f"{root}/data",
        dataset_fingerprint=manifest.fingerprint,
        world_size=1,
        versions={},
    )


def weights_of(storage: Location) -> dict[str, torch.Tensor]:
    """The state dict of the run's only checkpoint."""
    checkpoint = RunFolder(storage, "run").latest_checkpoint()
    assert checkpoint is not None
    return safetensors.torch.load((checkpoint.location / "model.safetensors").read())
