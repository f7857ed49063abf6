"""A run, a version and a file become the same evaluation target; what is missing or does not fit is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch

from made import write_dataset
from published import finished_run, weights_of
from stoker.errors import DatasetError, ModelError, RunError
from stoker.predict import EvaluationTarget, check_parity, evaluate_target
from stoker.registry import publish_run
from stoker.runs.folder import RunFolder
from stoker.storage import Location, locate


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Location:
    storage = finished_run(tmp_path_factory.mktemp("storage"), has_ema=True)
    publish_run(storage, "run", "digits", verify=check_parity)
    return storage


def file_of(storage: Location) -> Location:
    return storage / "models" / "digits" / "1" / "model.safetensors"


def test_each_constructor_finds_the_published_weights_their_recipe_and_classes(storage: Location) -> None:
    recipe = RunFolder(storage, "run").recipe()
    run = EvaluationTarget.from_run(storage, "run")
    version = EvaluationTarget.from_version(storage, "digits")
    file = EvaluationTarget.from_file(file_of(storage))
    assert [target.name for target in (run, version, file)] == ["run run", "digits@1", file_of(storage).url]
    assert run.recipe == version.recipe == file.recipe == recipe
    assert (run.classes, version.classes, file.classes) == (None, *[("class0", "class1", "class2")] * 2)
    assert run.weights.keys() == version.weights.keys() == file.weights.keys()
    for name, tensor in run.weights.items():
        assert torch.equal(tensor, version.weights[name])
        assert torch.equal(tensor, file.weights[name])
    raw = weights_of(storage)
    assert any(not torch.equal(tensor, raw[name]) for name, tensor in run.weights.items()), "the moving average counts"


def test_a_target_that_does_not_exist_is_named(storage: Location, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"run 'other' not found at .*/runs/other"):
        EvaluationTarget.from_run(storage, "other")
    with pytest.raises(ModelError, match="unknown model 'letters'"):
        EvaluationTarget.from_version(storage, "letters")
    with pytest.raises(ModelError, match=r"no weights at .*nothing\.safetensors; give the URL"):
        EvaluationTarget.from_file(locate(tmp_path) / "nothing.safetensors")


def test_a_file_needs_valid_weights_and_a_recipe_or_a_card_next_to_it(storage: Location, tmp_path: Path) -> None:
    place = locate(tmp_path) / "weights.safetensors"
    place.write(b"text")
    with pytest.raises(ModelError, match="not a valid safetensors file"):
        EvaluationTarget.from_file(place)
    place.write(file_of(storage).read())
    with pytest.raises(ModelError, match=r"no model\.json next to it describes it; give --recipe"):
        EvaluationTarget.from_file(place)
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(ModelError, match=r"model\.json: damaged, or not a model card; give --recipe"):
        EvaluationTarget.from_file(place)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_bytes((RunFolder(storage, "run").location / "recipe.yaml").read())
    assert EvaluationTarget.from_file(place, str(recipe)).classes is None


def test_another_data_set_and_weights_of_another_model_are_refused(storage: Location, tmp_path: Path) -> None:
    write_dataset(f"{tmp_path}/other", {"train": [4], "validation": [8]}, classes=4)
    target = EvaluationTarget.from_file(file_of(storage))
    with pytest.raises(DatasetError, match=r"its classes are not those that .* was trained on; choose another"):
        evaluate_target(target, data_url=f"{tmp_path}/other")
    place = locate(tmp_path) / "head.safetensors"
    place.write(safetensors.torch.save({"head": torch.zeros(2)}))
    (tmp_path / "model.json").write_bytes((storage / "models" / "digits" / "1" / "model.json").read())
    with pytest.raises(ModelError, match=r"do not fit a digitsnet with 3 classes \(.*\); check the recipe"):
        evaluate_target(EvaluationTarget.from_file(place))
