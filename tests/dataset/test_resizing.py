"""Training images that grow with the epoch, also after a restart; evaluation at a size of its own."""

from __future__ import annotations

from pathlib import Path

import torch

from made import write_dataset
from stoker.dataset import Loader
from stoker.recipe import Recipe, parse_recipe

RECIPE = """
name: growing
storage: {root}
data:
  url: {root}/data
  image_size: 32
  resizing: {{from_size: 16, start_epoch: 0, end_epoch: 2, multiple: 8}}
  block_samples: 4
  memory_mb: 1
  decode_threads: 1
model: {{name: digitsnet}}
batch: {{total: 8, micro: 4}}
optimizer: {{lr: 0.1}}
schedule: {{epochs: 4}}
evaluation: {{image_size: 40}}
workers: {{gpus: 0, cpus: 1}}
"""


def growing(root: Path) -> Recipe:
    write_dataset(f"{root}/data", {"train": [24], "validation": [5]})
    return parse_recipe(RECIPE.format(root=root), "growing.yaml")


def test_sizes_are_a_function_of_the_epoch_and_the_same_after_a_resume(tmp_path: Path) -> None:
    recipe = growing(tmp_path)
    loader = Loader.for_training(recipe)
    epochs = [list(loader) for _ in range(4)]
    assert [{batch.images.shape[-1] for batch in epoch} for epoch in epochs] == [{16}, {24}, {32}, {32}]
    resumed = Loader.for_training(recipe)
    resumed.load_state_dict({"epoch": 1, "step": 1})
    for again, before in zip(resumed, epochs[1][2:], strict=True):
        assert torch.equal(again.images, before.images)


def test_evaluation_has_a_size_of_its_own(tmp_path: Path) -> None:
    recipe = growing(tmp_path)
    assert recipe.evaluation_resize == round(40 / 0.875)
    (batch, *_) = Loader.for_evaluation(recipe)
    assert batch.images.shape[-2:] == (40, 40)
