"""What the driver refuses before it takes a resource."""

from __future__ import annotations

from pathlib import Path

import pytest

from made import write_dataset
from stoker.errors import ModelError
from stoker.recipe import Recipe, parse_recipe
from stoker.training.driver import check_recipe

RECIPE = """
name: small
storage: {root}/runs
data: {{url: {root}/data, image_size: 32, last_batch: pad}}
model: {{name: resnet18}}
batch: {{total: 8, micro: 4}}
optimizer: {{lr: 0.1}}
schedule: {{epochs: 1}}
workers: {{gpus: 0, cpus: 1}}
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set whose training split has 13 samples: the last of the micro-batches of 4 has 1."""
    root = tmp_path_factory.mktemp("driver")
    write_dataset(f"{root}/data", {"train": [13], "validation": [5]})
    return root


def recipe_of(root: Path, *overrides: str) -> Recipe:
    return parse_recipe(RECIPE.format(root=root), "small.yaml", overrides)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["batch.micro=1"], r"batch\.micro: the batch norms of resnet18 need more than one image of 32 pixels in a"),
        (
            ["model.name=inception_v3", "data.image_size=299"],
            r"data\.last_batch: the batch norms of inception_v3 .* 1 sample",
        ),
        ([], r"data\.last_batch: the batch norms of resnet18 need .* an epoch's last one has 1 sample; set it to drop"),
    ],
)
def test_a_micro_batch_of_one_that_batch_norm_cannot_take_is_refused(
    root: Path, overrides: list[str], line: str
) -> None:
    with pytest.raises(ModelError, match=line):
        check_recipe(recipe_of(root, *overrides))


@pytest.mark.parametrize(
    "overrides",
    [
        ["data.last_batch=drop"],
        ["batch.total=6", "batch.micro=3", "data.image_size=64"],  # one sample is left, with 2 x 2 values a channel
        ["batch.micro=1", "model.frozen=backbone"],  # frozen batch norms use their running statistics
        ["batch.micro=1", "model.name=vit_b_16"],
        ["batch.micro=2", "batch.total=2", "data.last_batch=drop"],
    ],
)
def test_a_micro_batch_that_batch_norm_can_take_is_not(root: Path, overrides: list[str]) -> None:
    assert check_recipe(recipe_of(root, *overrides)).split("train").samples == 13
