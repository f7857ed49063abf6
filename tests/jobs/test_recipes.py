"""The recipes that come with stoker: each is valid, its model takes all image sizes, and its schedule decays."""

from __future__ import annotations

from pathlib import Path

import pytest

from stoker.models.initialize import check_initialization
from stoker.recipe import Recipe, Schedule, read_recipe
from stoker.training.optim.schedule import learning_rate_ratio

FOLDER = Path(__file__).parents[2] / "jobs" / "recipes"
RECIPES = sorted(FOLDER.glob("*.yaml"))
TABLE = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()


def _without_weights(recipe: Recipe) -> Recipe:
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"weights": None})})


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipes_model_builds_and_takes_all_its_sizes(path: Path) -> None:
    recipe = _without_weights(read_recipe(path))
    classes = tuple(str(i) for i in range(1000 if path.stem.startswith("imagenet") else 2))
    assert check_initialization(recipe, classes, timeout_s=1) is None


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipes_schedule_peaks_once_and_decays(path: Path) -> None:
    schedule = read_recipe(path).schedule
    ratios = [learning_rate_ratio(schedule, step, 20) for step in range(schedule.epochs * 20)]
    peak = ratios.index(max(ratios))
    assert max(ratios) <= 1
    assert peak <= schedule.warmup_epochs * 20
    assert ratios[peak:] == sorted(ratios[peak:], reverse=True)
    assert ratios[-1] < 0.02


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_where_it_comes_from_and_whether_it_was_run(path: Path) -> None:
    comment = " ".join(line[2:] for line in path.read_text().splitlines() if line.startswith("#"))
    row = next(line for line in TABLE.splitlines() if f"`{path.name}`" in line)
    if path.stem.startswith("digits"):
        assert "not run" not in row
    elif path.stem.startswith(("pictures", "two-classes")):
        assert "not run" not in row
        assert "Run here" in comment
    else:
        assert "Not run here" in comment
        assert "Source" in comment
        assert "not run" in row


def test_ffcvs_sizes_grow_where_its_configuration_says() -> None:
    data = read_recipe(FOLDER / "imagenet-resnet50-88.yaml").data
    assert [data.image_size_at(epoch) for epoch in (0, 65, 70, 71, 76, 87)] == [160, 160, 160, 192, 192, 192]


def test_steps_and_lines_fall_as_their_names_say() -> None:
    steps = Schedule(epochs=9, shape="steps", step_epochs=3, step_factor=0.1)
    line = Schedule(epochs=10, warmup_epochs=2, shape="linear", final_lr_ratio=0.2)
    assert [learning_rate_ratio(steps, step, 10) for step in (0, 29, 30, 60, 89)] == pytest.approx(
        [1, 1, 0.1, 0.01, 0.01]
    )
    assert [learning_rate_ratio(line, step, 10) for step in (20, 60, 100)] == pytest.approx([1, 0.6, 0.2])
