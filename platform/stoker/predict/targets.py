"""Evaluate a run, a model version or a file of weights as the trainer would: equal weights give equal metrics."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from stoker.dataset import Loader
from stoker.errors import DatasetError, ModelError, RunError
from stoker.evaluation import EvaluationResult, evaluate
from stoker.models import build_model, load_weights, model_options
from stoker.models.known_weights import imagenet_classes
from stoker.models.normalize import Normalize
from stoker.recipe import Recipe, read_recipe, stored_recipe
from stoker.registry import Registry
from stoker.registry.card import ModelCard
from stoker.runs.folder import RunFolder
from stoker.storage import Location

__all__ = ["EvaluationTarget", "evaluate_target", "evaluation_recipe"]


_BATCH = 32
_IMAGENET = 1000
_WNID = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class EvaluationTarget:
    """Weights to evaluate, and the recipe of the model that they belong to; ``classes`` is None where unknown."""

    name: str
    """for messages: ``run digits``, ``digits@3``, or the file's URL"""
    recipe: Recipe
    weights: dict[str, Tensor]
    classes: tuple[str, ...] | None

    @classmethod
    def from_run(cls, storage: Location, run: str) -> EvaluationTarget:
        """The last checkpoint of ``run``: its moving average (EMA) if the run keeps one.

        Raises:
            RunError: the run does not exist, or has no checkpoint.
        """
        folder = RunFolder(storage, run)
        recipe, checkpoint = folder.recipe(), folder.latest_checkpoint()
        if checkpoint is None:
            raise RunError(f"run {run!r} has no checkpoint at {folder.checkpoints}; train it first")
        return cls(f"run {run}", recipe, checkpoint.weights(), None)

    @classmethod
    def from_version(cls, storage: Location, reference: str) -> EvaluationTarget:
        """The model version that ``reference`` names in the registry below ``storage``.

        Raises:
            ModelError: the model, version or alias does not exist.
        """
        version = Registry(storage).resolve(reference)
        return cls(version.reference, _recipe_of(version.card), version.weights(), version.classes)

    @classmethod
    def from_file(cls, place: Location, recipe: str | None = None) -> EvaluationTarget:
        """A safetensors file, with the recipe in the YAML file ``recipe`` or, by default, the model.json next to it.

        Raises:
            ModelError: the file does not exist, or neither a recipe nor a model.json describes it.
            RecipeError: the recipe cannot be read.
        """
        try:
            weights = safetensors.torch.load(place.read())
        except FileNotFoundError:
            raise ModelError(f"no weights at {place}; give the URL of a .safetensors file") from None
        except safetensors.SafetensorError as error:
            raise ModelError(
                f"{place}: not a valid safetensors file ({error}); give the URL of a .safetensors file"
            ) from None
        if recipe is not None:
            return cls(str(place), read_recipe(recipe), weights, None)
        card_place = replace(place, url=place.url.rpartition("/")[0]) / "model.json"
        try:
            card = ModelCard.model_validate_json(card_place.read())
        except FileNotFoundError:
            raise ModelError(f"{place}: no model.json next to it describes it; give --recipe recipe.yaml") from None
        except ValueError:
            raise ModelError(f"{card_place}: damaged, or not a model card; give --recipe recipe.yaml") from None
        return cls(str(place), _recipe_of(card), weights, card.classes)


def evaluation_recipe(card: ModelCard, data_url: str) -> Recipe:
    """A recipe that evaluates weights which were trained elsewhere as ``card`` says, on the data set ``data_url``."""
    how = card.preprocessing
    return Recipe.model_validate(
        {
            "name": "imported",
            "storage": data_url,
            "data": {
                "url": data_url,
                "image_size": how.image_size,
                "mean": how.mean,
                "std": how.std,
                "validation_split": card.dataset_split or "validation",
            },
            "model": {"name": card.architecture},
            "evaluation": {"resize": how.resize},
            "batch": {"total": _BATCH, "micro": _BATCH},
            "optimizer": {"lr": 1.0},
            "schedule": {"epochs": 1},
            "workers": {"gpus": 0, "cpus": os.cpu_count() or 1},
        }
    )


def _recipe_of(card: ModelCard) -> Recipe:
    return stored_recipe(card.recipe) if card.recipe else evaluation_recipe(card, card.dataset_url or "")


def _are_same(ours: tuple[str, ...], theirs: tuple[str, ...]) -> bool:
    """Whether a data set's classes are the model's; ImageNet's are also known by their WNIDs, which sort as they do."""
    if ours == theirs:
        return True
    return (
        len(ours) == len(theirs) == _IMAGENET
        and all(_WNID.fullmatch(name) for name in theirs)
        and theirs == tuple(sorted(theirs))
        and (theirs[0], theirs[-1]) == ("n01440764", "n15075141")  # the tench and the toilet tissue of ILSVRC 2012
        and ours == imagenet_classes()
    )


def evaluate_target(
    target: EvaluationTarget, *, split: str | None = None, data_url: str | None = None
) -> tuple[tuple[str, ...], EvaluationResult]:
    """Evaluate ``target`` on a whole split and return the class names and the result.

    ``split`` and ``data_url`` default to the recipe's validation split. Weights that were trained on the CPU are
    evaluated with as many threads as a worker had: the number of threads decides the order of additions, which shows
    in the last bits.

    Raises:
        ModelError: the weights do not fit the recipe's model.
        DatasetError: the data set does not exist, or has other classes.
    """
    recipe, name = target.recipe, target.name
    data = recipe.data.model_copy(
        update={"url": data_url or recipe.data.url, "validation_split": split or recipe.data.validation_split}
    )
    if not data.url:
        raise DatasetError(f"{name} was imported, so no data set of it is known; give one with --data URL")
    loader = Loader.for_evaluation(recipe.model_copy(update={"data": data}))
    if target.classes is not None and not _are_same(target.classes, loader.classes):
        same = sorted(target.classes) == sorted(loader.classes)
        what = (
            "has the classes of {0} in another order" if same else "its classes are not those that {0} was trained on"
        )
        raise DatasetError(f"{data.url}: {what.format(name)}; choose another data set")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    options = model_options(recipe.model, recipe.evaluation_image_size)
    model = build_model(recipe.model.name, classes=len(loader.classes), **options)
    try:
        load_weights(model, target.weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{name}: its weights do not fit a {recipe.model.name} with {len(loader.classes)} classes ({reason}); "
            "check the recipe"
        ) from None
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    normalize = Normalize(recipe.data.mean, recipe.data.std).to(device)
    threads = torch.get_num_threads()
    if not recipe.workers.gpus:
        torch.set_num_threads(recipe.workers.cpus)
    try:
        placed = model.to(device).to(memory_format=layout)
        result = evaluate(placed, normalize, loader, len(loader.classes), precision=recipe.precision)
    finally:
        torch.set_num_threads(threads)
    return loader.classes, result
