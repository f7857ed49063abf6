"""The trainer's own evaluation again, of what a run or the registry holds: from the stored weights, equal numbers."""

from __future__ import annotations

import torch

from stoker.dataset import Loader
from stoker.errors import DatasetError, RunError
from stoker.recipe import Recipe
from stoker.registry import Registry
from stoker.storage import Location
from stoker.training.evaluation import Evaluated, Normalize, evaluate
from stoker.training.models import build_model, load_weights, model_options
from stoker.training.runs import RunFolder

__all__ = ["evaluate_reference"]


def evaluate_reference(
    storage: Location, reference: str, *, is_run: bool = False, split: str | None = None, data_url: str | None = None
) -> tuple[tuple[str, ...], Evaluated]:
    """(class names, evaluation) of the version ``reference``, or of the run of that name at its last checkpoint.

    ``split`` and ``data_url`` default to the recipe's validation split.

    Raises:
        ModelError, RunError: there is no such version or run.
        DatasetError: the data set is not there, or has other classes.
    """
    if is_run:
        run = RunFolder(storage, reference)
        recipe, checkpoint = run.recipe(), run.latest_checkpoint()
        if checkpoint is None:
            raise RunError(f"run {reference!r} has no checkpoint at {run.checkpoints}; train it first")
        weights = checkpoint.weights()
    else:
        version = Registry(storage).resolve(reference)
        recipe, weights = Recipe.model_validate(version.card.recipe), version.weights()
    data = recipe.data.model_copy(
        update={"url": data_url or recipe.data.url, "validation_split": split or recipe.data.validation_split}
    )
    loader = Loader.for_evaluation(recipe.model_copy(update={"data": data}))
    if not is_run and loader.classes != version.classes:
        raise DatasetError(f"{data.url} has other classes than {reference} was trained on; choose another data set")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    options = model_options(recipe.model, recipe.evaluation_image_size)
    model = build_model(recipe.model.name, classes=len(loader.classes), **options)
    load_weights(model, weights)
    normalize = Normalize(recipe.data.mean, recipe.data.std).to(device)
    return loader.classes, evaluate(model.to(device), normalize, loader, len(loader.classes))
