"""What the driver refuses before it takes a resource."""

from __future__ import annotations

from pathlib import Path

import pytest

from made import write_dataset
from stoker.errors import ModelError, RecipeError
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


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["compile=true", "reproducible=true", "workers.gpus=1"],
            "compile: equal weights, which reproducible promises, were measured with compile on CPUs only; set compile "
            "or reproducible to false",
        ),
        (
            ["compile=true", "sync_batch_norm=true", "workers.gpus=1", "data.last_batch=drop"],
            "compile: it was never tried with sync_batch_norm; set one of them to false",
        ),
        (
            ["reproducible=true", "workers.gpus=1", "model.name=vgg11"],
            "reproducible: on GPUs the gradient of AdaptiveAvgPool2d in vgg11 has no deterministic algorithm; set it "
            "to false, choose another model, or set workers.gpus to 0",
        ),
    ],
)
def test_what_was_never_measured_is_refused_before_a_run_but_a_stored_one_stays_readable(
    root: Path, overrides: list[str], line: str
) -> None:
    recipe = recipe_of(root, *overrides)
    with pytest.raises(RecipeError) as caught:
        check_recipe(recipe)
    assert str(caught.value) == line


@pytest.mark.parametrize(
    "overrides",
    [
        ["compile=true", "reproducible=true"],
        ["compile=true", "workers.gpus=1"],
        ["reproducible=true", "workers.gpus=1"],
        ["reproducible=true", "model.name=alexnet", "data.image_size=64"],
        ["workers.gpus=1", "model.name=alexnet", "data.image_size=64"],
    ],
)
def test_what_was_measured_is_not(root: Path, overrides: list[str]) -> None:
    assert check_recipe(recipe_of(root, "data.last_batch=drop", *overrides)).split("train").samples == 13


def test_heads_that_are_not_built_are_no_reason_to_refuse(root: Path) -> None:
    overrides = ["reproducible=true", "workers.gpus=1", "model.name=googlenet", "data.last_batch=drop"]
    with pytest.raises(RecipeError, match="AdaptiveAvgPool2d in googlenet"):
        check_recipe(recipe_of(root, *overrides))
    check_recipe(recipe_of(root, *overrides, "loss.auxiliary_weight=0", "data.image_size=64"))
