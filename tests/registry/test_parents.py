"""Which version a run is initialized from: what an alias meant at its first submission."""

from __future__ import annotations

from pathlib import Path

import pytest

from cards import CARD
from stoker.errors import ModelError
from stoker.recipe import Recipe, Source, parse_recipe
from stoker.registry import Registry, parents, with_source
from stoker.runs.folder import RunFolder
from stoker.storage import Location, locate

RECIPE = """
name: tuned
storage: {root}
data: {{url: {root}/data}}
model: {{name: digitsnet}}
batch: {{total: 8, micro: 8}}
optimizer: {{lr: 0.1}}
schedule: {{epochs: 1}}
workers: {{gpus: 0, cpus: 1}}
"""
SHA256_OF_ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def recipe_of(root: Path, *overrides: str) -> Recipe:
    return parse_recipe(RECIPE.format(root=root), "tuned.yaml", overrides)


@pytest.fixture
def models(tmp_path: Path) -> Registry:
    """Two versions of digits, of which live is the first."""
    registry = Registry(locate(tmp_path))
    for data in (b"abc", b"abcd"):
        registry.publish("digits", CARD, {"model.safetensors": data})
    registry.set_alias("digits", "live", 1)
    return registry


def test_a_source_is_the_versions_weights_their_checksum_its_name_and_its_classes(
    models: Registry, tmp_path: Path
) -> None:
    recipe = recipe_of(tmp_path, "model.weights=digits@live")
    found = with_source(recipe)
    assert found.model.source == Source(
        url=f"{tmp_path}/models/digits/1/model.safetensors",
        sha256=SHA256_OF_ABC,
        reference="digits@1",
        classes=("a", "b"),
    )
    assert found.model_copy(update={"model": recipe.model}) == recipe
    assert recipe.model.source is None


@pytest.mark.parametrize("overrides", [(), ("model.weights=/some/digits@live/weights.pt",), ("model.weights=digits",)])
def test_a_recipe_that_names_no_version_stays_as_it_is(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    recipe = recipe_of(tmp_path, *overrides)
    assert with_source(recipe) is recipe


def test_a_source_that_is_known_is_not_looked_up_again(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "model.weights=digits@live", "model.source.url=/elsewhere")
    assert with_source(recipe) is recipe  # there is no registry


def test_a_run_that_is_submitted_again_keeps_its_version_though_the_alias_moved(
    models: Registry, tmp_path: Path
) -> None:
    recipe = recipe_of(tmp_path, "model.weights=digits@live")
    RunFolder(locate(tmp_path), "tuned").begin(with_source(recipe))
    models.set_alias("digits", "live", 2)
    assert with_source(recipe).model.parent == "digits@1"
    other = with_source(recipe.model_copy(update={"name": "other"}))
    assert other.model.parent == "digits@2"


def test_a_run_that_is_submitted_with_other_weights_gets_those(models: Registry, tmp_path: Path) -> None:
    RunFolder(locate(tmp_path), "tuned").begin(with_source(recipe_of(tmp_path, "model.weights=digits@1")))
    assert with_source(recipe_of(tmp_path, "model.weights=digits@2")).model.parent == "digits@2"


def test_an_unknown_version_is_said_where_it_was_looked_for(models: Registry, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="digits has no version 3; its versions: 1, 2"):
        with_source(recipe_of(tmp_path, "model.weights=digits@3"))


def test_a_store_that_is_away_is_given_up_after_five_seconds(
    models: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A submission waits for it: a person in front of a terminal."""
    timeouts: list[float] = []

    def located(url: str, *, timeout_s: float) -> Location:
        timeouts.append(timeout_s)
        return locate(url, timeout_s=timeout_s)

    monkeypatch.setattr(parents, "locate", located)
    with_source(recipe_of(tmp_path, "model.weights=digits@live"))
    assert timeouts == [5.0, 5.0]
