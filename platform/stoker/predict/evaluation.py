"""The trainer's own evaluation again, of what a run, the registry or a file holds: equal weights give equal numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from stoker.dataset import Loader
from stoker.errors import DatasetError, ModelError, RunError
from stoker.evaluation import EvaluationResult, evaluate
from stoker.models import build_model, load_weights, model_options
from stoker.models.normalize import Normalize
from stoker.recipe import Recipe, read_recipe, stored_recipe
from stoker.registry import Registry
from stoker.registry.card import ModelCard
from stoker.runs.folder import RunFolder
from stoker.storage import Location

__all__ = ["Judged", "evaluate_judged", "file_judged", "run_judged", "version_judged"]


@dataclass(frozen=True)
class Judged:
    """What is to be evaluated: ``weights`` of the model that ``recipe`` describes; ``classes`` None where unknown."""

    name: str
    recipe: Recipe
    weights: dict[str, Tensor]
    classes: tuple[str, ...] | None


def run_judged(storage: Location, run: str) -> Judged:
    """The last checkpoint of a run: its moving average where it keeps one.

    Raises:
        RunError: there is no such run, or it has no checkpoint.
    """
    folder = RunFolder(storage, run)
    recipe, checkpoint = folder.recipe(), folder.latest_checkpoint()
    if checkpoint is None:
        raise RunError(f"run {run!r} has no checkpoint at {folder.checkpoints}; train it first")
    return Judged(f"run {run}", recipe, checkpoint.weights(), None)


def version_judged(storage: Location, reference: str) -> Judged:
    """A model version.

    Raises:
        ModelError: there is no such model, version or alias.
    """
    version = Registry(storage).resolve(reference)
    recipe = stored_recipe(version.card.recipe)
    return Judged(version.reference, recipe, version.weights(), version.classes)


def file_judged(place: Location, recipe: str | None = None) -> Judged:
    """A safetensors file, with the recipe in the YAML file ``recipe``, or with the model.json that lies beside it.

    Raises:
        ModelError: there is no such file, or neither a recipe nor a model.json says what it is.
        RecipeError: the recipe cannot be read.
    """
    try:
        weights = safetensors.torch.load(place.read())
    except FileNotFoundError:
        raise ModelError(f"no weights at {place}; give the URL of a .safetensors file") from None
    except safetensors.SafetensorError as error:
        raise ModelError(f"{place}: not a safetensors file ({error})") from None
    if recipe is not None:
        return Judged(str(place), read_recipe(recipe), weights, None)
    beside = replace(place, url=place.url.rpartition("/")[0]) / "model.json"
    try:
        card = ModelCard.model_validate_json(beside.read())
    except FileNotFoundError:
        raise ModelError(f"{place}: no model.json beside it says what it is; give --recipe recipe.yaml") from None
    except ValueError:
        raise ModelError(f"{beside}: damaged, or no model's card; give --recipe recipe.yaml") from None
    return Judged(str(place), stored_recipe(card.recipe), weights, card.classes)


def evaluate_judged(
    judged: Judged, *, split: str | None = None, data_url: str | None = None
) -> tuple[tuple[str, ...], EvaluationResult]:
    """(class names, evaluation); ``split`` and ``data_url`` default to the recipe's validation split.

    What was trained on the CPU is evaluated with as many threads as its workers had: other numbers of threads add in
    another order, which shows in the last bits.

    Raises:
        ModelError: the weights are not those of the recipe's model.
        DatasetError: the data set is not there, or has other classes.
    """
    recipe, name = judged.recipe, judged.name
    data = recipe.data.model_copy(
        update={"url": data_url or recipe.data.url, "validation_split": split or recipe.data.validation_split}
    )
    loader = Loader.for_evaluation(recipe.model_copy(update={"data": data}))
    if judged.classes is not None and loader.classes != judged.classes:
        raise DatasetError(f"{data.url} has other classes than {name} was trained on; choose another data set")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    options = model_options(recipe.model, recipe.evaluation_image_size)
    model = build_model(recipe.model.name, classes=len(loader.classes), **options)
    try:
        load_weights(model, judged.weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{name}: its weights are not those of a {recipe.model.name} with {len(loader.classes)} classes ({reason})"
        ) from None
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    normalize = Normalize(recipe.data.mean, recipe.data.std).to(device)
    threads = torch.get_num_threads()
    if not recipe.workers.gpus:
        torch.set_num_threads(recipe.workers.cpus)
    try:
        evaluated = evaluate(model.to(device).to(memory_format=layout), normalize, loader, len(loader.classes))
    finally:
        torch.set_num_threads(threads)
    return loader.classes, evaluated
