"""Compiled steps: static graphs, one for each size that a recipe has."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from made import write_dataset
from stoker.recipe import Recipe, parse_recipe
from weights.compiled import train_through_sizes
from weights.ranks import sha256_of

RECIPE = """
name: compiled
storage: {root}/runs
data:
  url: {root}/data
  image_size: 24
  resizing: {{from_size: 16, start_epoch: 0, end_epoch: 1, multiple: 8}}
  last_batch: pad
  block_samples: 4
  memory_mb: 1
  decode_threads: 1
model: {{name: digitsnet, drop_rate: 0.2}}
batch: {{total: 24, micro: 4}}
optimizer: {{lr: 0.05}}
schedule: {{epochs: 2}}
workers: {{max: 2, gpus: 0, cpus: 1}}
compile: true
"""


def _recipe(root: Path, *overrides: str) -> Recipe:
    return parse_recipe(RECIPE.format(root=root), "compiled.yaml", overrides)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compiled")
    write_dataset(f"{folder}/data", {"train": [30, 23], "validation": [17]})
    return folder


def _through_and_resumed(recipe: Recipe, ranks: int, folder: Path) -> tuple[str, list[int]]:
    """The hash of the weights of a run, which one that is resumed before its last epoch has too; graphs of both."""
    through = train_through_sizes(recipe, ranks, folder)
    before = folder / "before-last.pt"
    resumed = train_through_sizes(recipe, ranks, folder.with_name(f"{folder.name}-resumed"), resumed_from=before)
    graphs = [int(weights.pop("graphs")) for weights in (through, resumed)]
    assert all(bool(torch.isfinite(value).all()) for value in through.values())
    assert sha256_of(through) == sha256_of(resumed)
    return sha256_of(through), graphs


@pytest.mark.long
@pytest.mark.timeout(3000)
def test_a_run_that_is_resumed_at_another_size_has_the_bits_of_one_that_went_through_all(root: Path) -> None:
    _, graphs = _through_and_resumed(_recipe(root), 1, root / "float")
    assert graphs == [4, 2], "an epoch's micro-batches have 4 samples and the last 1, at two sizes"


@pytest.mark.long
@pytest.mark.timeout(3000)
def test_with_exact_sums_compiled_weights_are_the_same_bits_on_1_and_2_ranks_resized_and_resumed(root: Path) -> None:
    """In the last step of an epoch, which is padded, the second rank has no sample."""
    recipe = _recipe(root, "reproducible=true")
    found = {ranks: _through_and_resumed(recipe, ranks, root / f"exact-{ranks}") for ranks in (1, 2)}
    assert found[1][0] == found[2][0]
