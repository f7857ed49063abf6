"""A card of another version of stoker, or of another model, in the place of a version's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cards import CARD
from published import finished_run
from stoker.errors import ModelError
from stoker.predict import Predictor, check_parity
from stoker.predict.targets import EvaluationTarget
from stoker.registry import ModelCard, Registry, publish_run
from stoker.storage import Location, locate

TOMORROW = {"unheard": [1, {"of": None}]}


@pytest.fixture
def models(tmp_path: Path) -> Registry:
    registry = Registry(locate(tmp_path, timeout_s=0.3))
    registry.publish("digits", CARD, {"weights": b"abc"})
    return registry


def change(card: Location, update: Any) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(card.read())
    update(content)
    card.write(json.dumps(content).encode())
    return content


def from_tomorrow(content: dict[str, Any]) -> None:
    content["version"] = [content["version"][0], 99]
    sections = [content, content["metrics"], content["preprocessing"], content["recipe"]]
    sections += [content["recipe"][name] for name in ("model", "data") if name in content["recipe"]]
    for section in sections:
        section["tomorrow"] = TOMORROW


def test_what_a_later_minor_version_added_is_written_again_as_it_was(models: Registry) -> None:
    content = change(models.location / "digits/1/model.json", from_tomorrow)
    again = models.publish("letters", models.resolve("digits@1").card, {"weights": b"abc"})
    written = json.loads((again.location / "model.json").read())
    assert written == content | {"name": "letters", "version": [1, 1]}
    assert written["metrics"]["tomorrow"] == written["recipe"]["tomorrow"] == TOMORROW


def test_metrics_of_a_later_version_are_no_figures_of_curves(models: Registry) -> None:
    change(models.location / "digits/1/model.json", from_tomorrow)
    metrics = models.resolve("digits@1").card.metrics
    assert metrics is not None
    assert metrics.figures() == {"loss": 0.5, "accuracy": 0.75, "top5": 1.0}


def test_a_version_of_a_later_minor_version_predicts_and_is_evaluated(tmp_path: Path) -> None:
    storage = finished_run(tmp_path)
    version = publish_run(storage, "run", "digits", verify=check_parity)
    before = EvaluationTarget.from_version(storage, "digits@1").recipe
    change(version.location / "model.json", from_tomorrow)
    assert EvaluationTarget.from_version(storage, "digits@1").recipe == before
    assert EvaluationTarget.from_file(version.location / "model.safetensors").recipe == before
    assert Predictor.load("digits@1", storage=storage.url).classes == version.classes


@pytest.mark.parametrize(
    ("version", "line"),
    [([0, 9], "format version [0, 9] is unknown; publish the run again"),
     ([-1, 0], "format version [-1, 0] is unknown; publish the run again"),
     ([3, 0], "format version [3, 0] is newer than this stoker reads; upgrade stoker")],
)  # fmt: skip
def test_another_major_version_is_refused_in_one_line(models: Registry, version: list[int], line: str) -> None:
    card = models.location / "digits/1/model.json"
    change(card, lambda content: content.update(version=version))
    with pytest.raises(ModelError) as caught:
        models.resolve("digits@1")
    assert str(caught.value) == f"{card}: {line}"


@pytest.mark.parametrize(("name", "number"), [("letters", 1), ("digits", 2), ("digits", "1"), ("Digits", 1)])
def test_a_card_of_another_version_is_refused_with_both_names(models: Registry, name: str, number: object) -> None:
    change(models.location / "digits/1/model.json", lambda content: content.update(name=name, number=number))
    with pytest.raises(ModelError) as caught:
        models.resolve("digits@1")
    assert str(caught.value) == (
        f"{models.location}/digits/1/model.json: the card of {name}@{number} in the place of digits@1's; versions are "
        "not copied or renamed, publish the run as digits"
    )


@pytest.mark.parametrize("key", ["name", "number"])
def test_a_card_that_does_not_say_whose_it_is_is_damaged(models: Registry, key: str) -> None:
    change(models.location / "digits/1/model.json", lambda content: content.pop(key))
    with pytest.raises(ModelError, match="damaged"):
        models.resolve("digits@1")


def test_a_folder_that_was_copied_to_another_name_is_refused(models: Registry) -> None:
    for path, _ in (models.location / "digits/1").walk():
        (models.location / "stolen/1" / path).write((models.location / "digits/1" / path).read())
    with pytest.raises(ModelError, match="the card of digits@1 in the place of stolen@1's"):
        models.resolve("stolen")


def test_what_model_json_has_around_the_card_is_not_in_it(models: Registry) -> None:
    content = json.loads((models.location / "digits/1/model.json").read())
    assert ModelCard.model_validate(content) == CARD
