"""Initializing a model: weights of a file or a version, a new head where classes differ, refusals in one line."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from published import finished_run
from stoker.errors import ModelError, StorageError
from stoker.models import build_model
from stoker.models.initialize import check_initialization, initial_weights, training_model
from stoker.recipe import Recipe, parse_recipe
from stoker.registry import Registry, publish_run, with_source
from stoker.runs.folder import RunFolder
from stoker.storage import locate

RECIPE = """
name: tuned
storage: {root}
data: {{url: {root}/data, image_size: 32}}
model: {{name: {model}}}
batch: {{total: 4, micro: 2}}
optimizer: {{lr: 0.1}}
schedule: {{epochs: 1}}
workers: {{gpus: 0, cpus: 1}}
"""
THREE = ("a", "b", "c")


def recipe_of(root: Path | str, *overrides: str, model: str = "digitsnet") -> Recipe:
    return parse_recipe(RECIPE.format(root=root, model=model), "tuned.yaml", [f"model.{o}" for o in overrides])


def weights_file(path: Path, *, name: str = "digitsnet", classes: int = 3, seed: int = 5) -> dict[str, torch.Tensor]:
    """Write a model's weights to ``path`` in the format of its ending; returns them."""
    torch.manual_seed(seed)
    state = build_model(name, classes=classes).state_dict()
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path)
    return state


def initialized(recipe: Recipe, classes: tuple[str, ...]) -> nn.Module:
    torch.manual_seed(recipe.seed)
    model = training_model(recipe, len(classes))
    model.load_state_dict(initial_weights(recipe, classes), strict=False)
    return model


@pytest.mark.parametrize("file", ["w.safetensors", "w.pth"])
def test_weights_of_a_file_fill_the_model_head_and_all(tmp_path: Path, file: str) -> None:
    state = weights_file(tmp_path / file)
    recipe = recipe_of(tmp_path, f"weights={tmp_path}/{file}")
    assert check_initialization(recipe, THREE, timeout_s=1) == f"initialized from {tmp_path}/{file}"
    model = initialized(recipe, THREE)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_head_for_other_classes_is_new_and_the_rest_is_taken(tmp_path: Path) -> None:
    state = weights_file(tmp_path / "w.safetensors", classes=10)
    recipe = recipe_of(tmp_path, f"weights={tmp_path}/w.safetensors")
    line = check_initialization(recipe, THREE, timeout_s=1)
    assert line == f"initialized from {tmp_path}/w.safetensors, a new head for 3 classes"
    model = initialized(recipe, THREE)
    assert model.head.weight.shape == (3, 128)
    assert torch.equal(model.stem[0].weight, state["stem.0.weight"])


def test_a_new_head_may_be_asked_for(tmp_path: Path) -> None:
    state = weights_file(tmp_path / "w.safetensors")
    model = initialized(recipe_of(tmp_path, f"weights={tmp_path}/w.safetensors", "head=new"), THREE)
    assert not torch.equal(model.head.weight, state["head.weight"])
    assert torch.equal(model.stem[0].weight, state["stem.0.weight"])


@pytest.mark.parametrize("prefix", ["module.", ""])
def test_a_wrapped_state_dict_is_unwrapped(tmp_path: Path, prefix: str) -> None:
    state = build_model("resnet18", classes=3).state_dict()
    torch.save({"model": {prefix + name: value for name, value in state.items()}, "epoch": 3}, tmp_path / "w.pth")
    model = initialized(recipe_of(tmp_path, f"weights={tmp_path}/w.pth", model="resnet18"), THREE)
    assert torch.equal(model.conv1.weight, state["conv1.weight"])


def test_weights_with_or_without_auxiliary_heads_fit_a_googlenet(tmp_path: Path) -> None:
    for auxiliary in (True, False):
        state = build_model("googlenet", classes=5, auxiliary=auxiliary).state_dict()
        torch.save(state, tmp_path / "w.pth")
        recipe = recipe_of(tmp_path, f"weights={tmp_path}/w.pth", model="googlenet")
        assert torch.equal(initialized(recipe, THREE).conv1.conv.weight, state["conv1.conv.weight"])


def test_a_vision_transformers_positions_follow_the_image_size(tmp_path: Path) -> None:
    weights_file(tmp_path / "w.safetensors", name="vit_b_32", classes=3)
    recipe = recipe_of(tmp_path, f"weights={tmp_path}/w.safetensors", model="vit_b_32")
    check_initialization(recipe, THREE, timeout_s=1)
    assert initialized(recipe, THREE).encoder.pos_embedding.shape == (1, 2, 768)


@pytest.mark.parametrize("file", ["w.safetensors", "w.pth"])
def test_weights_of_another_architecture_are_refused_by_tensor_and_shapes(tmp_path: Path, file: str) -> None:
    weights_file(tmp_path / file, name="resnet34")
    advice = "give weights of this architecture, or change model.name and its options"
    count = r"\(the first of 80 that differ, of 122\)"
    with pytest.raises(
        ModelError, match=rf"for a resnet18: the model has no tensor layer\S+ \[64.*\] {count}; {advice}"
    ):
        check_initialization(recipe_of(tmp_path, f"weights={tmp_path}/{file}", model="resnet18"), THREE, timeout_s=1)
    with pytest.raises(ModelError, match=r"tensor layer1.0.conv1.weight is \[64, 64, 3, 3\], but \[64, 64, 1, 1\]"):
        check_initialization(recipe_of(tmp_path, f"weights={tmp_path}/{file}", model="resnet50"), THREE, timeout_s=1)


def test_files_that_are_missing_or_something_else_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "words.pth").write_text("these are no weights, but long enough for a header of some kind")
    torch.save({"a": [1, 2]}, tmp_path / "list.pth")
    torch.save(build_model("digitsnet", classes=3), tmp_path / "object.pth")  # would run code when loaded
    (tmp_path / "words.safetensors").write_bytes(b"\xff" * 64)
    for file, words in {
        "nothing.pth": "not found",
        "words.pth": "does not load with weights_only",
        "list.pth": "does not hold a state dict",
        "object.pth": "does not load with weights_only",
        "words.safetensors": "is not a safetensors file",
    }.items():
        with pytest.raises(ModelError, match=words) as caught:
            check_initialization(recipe_of(tmp_path, f"weights={tmp_path}/{file}"), THREE, timeout_s=1)
        assert "\n" not in str(caught.value)


def _published(root: Path) -> Recipe:
    """A recipe that is initialized from the first version of a model of three classes."""
    storage = finished_run(root)
    publish_run(storage, "run", "digits", verify=lambda *_: None, alias="best")
    return recipe_of(root, "weights=digits@best")


def test_a_version_is_found_by_its_alias_and_kept_by_its_number_and_checksum(tmp_path: Path) -> None:
    recipe = with_source(_published(tmp_path))
    source = recipe.model.source
    assert source is not None
    assert (source.reference, source.classes, recipe.model.parent) == (
        "digits@1",
        ("class0", "class1", "class2"),
        "digits@1",
    )
    data = (tmp_path / "models/digits/1/model.safetensors").read_bytes()
    assert source.sha256 == hashlib.sha256(data).hexdigest()
    weights = safetensors.torch.load(data)
    model = initialized(recipe, ("class0", "class1", "class2"))
    assert torch.equal(model.head.weight, weights["head.weight"])


def test_as_many_but_other_classes_get_a_new_head(tmp_path: Path) -> None:
    recipe = with_source(_published(tmp_path))
    line = check_initialization(recipe, THREE, timeout_s=1)
    assert line == "initialized from digits@1, a new head for 3 classes"


def test_a_run_resumes_with_the_version_that_it_was_initialized_from(tmp_path: Path) -> None:
    recipe = _published(tmp_path)
    RunFolder(locate(str(tmp_path)), "tuned").begin(with_source(recipe))
    publish_run(locate(str(tmp_path)), "run", "digits", verify=lambda *_: None, alias="best")
    again = with_source(recipe)
    assert again.model.parent == "digits@1"
    RunFolder(locate(str(tmp_path)), "tuned").begin(again)  # the same recipe: not refused
    other = with_source(recipe.model_copy(update={"name": "other"}))
    assert other.model.parent == "digits@2"


def test_weights_that_changed_since_they_were_published_are_refused(tmp_path: Path) -> None:
    recipe = with_source(_published(tmp_path)).model_copy(update={"storage_timeout_s": 0.2})
    weights_file(tmp_path / "models/digits/1/model.safetensors")
    with pytest.raises(StorageError, match="whose checksum is not that of the published model"):
        initialized(recipe, THREE)


def test_a_version_that_was_not_looked_up_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"digits@3 is a model version, which stoker train looks up"):
        check_initialization(recipe_of(tmp_path, "weights=digits@3"), THREE, timeout_s=1)


def test_a_published_fine_tune_names_its_parent(tmp_path: Path) -> None:
    tuned = with_source(_published(tmp_path))
    folder = RunFolder(locate(str(tmp_path)), "run")
    recipe = folder.recipe()
    fine_tuned = recipe.model_copy(update={"model": tuned.model})
    (folder.location / "recipe.yaml").delete()
    folder.begin(fine_tuned)
    version = publish_run(locate(str(tmp_path)), "run", "narrow", verify=lambda *_: None)
    assert Registry(locate(str(tmp_path))).resolve(version.reference).card.parent == "digits@1"


@pytest.mark.parametrize(("weight", "has_heads"), [(None, True), (0.5, True), (0.0, False)])
def test_auxiliary_heads_are_trained_only_where_their_loss_counts(
    weight: float | None, has_heads: bool, tmp_path: Path
) -> None:
    given = "" if weight is None else f"loss: {{auxiliary_weight: {weight}}}"
    recipe = parse_recipe(RECIPE.format(root=tmp_path, model="googlenet") + given, "tuned.yaml")
    with torch.device("meta"):
        names = [name for name, _ in training_model(recipe, 3).named_parameters()]
    assert any(name.startswith(("aux1.", "aux2.")) for name in names) == has_heads
    check_initialization(recipe, THREE, timeout_s=5)
