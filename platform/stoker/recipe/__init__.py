"""The recipe of a run as one typed object: read from YAML, overridden by dotted keys, validated as a whole."""

from stoker.recipe.data_fields import Augment, Data, Resizing
from stoker.recipe.model_fields import Augmentation, Loss, Model, Optimizer, Source
from stoker.recipe.reading import (
    as_yaml,
    changed_keys,
    json_schema,
    leaves,
    parse_recipe,
    read_recipe,
    stored_model,
    stored_recipe,
)
from stoker.recipe.schema import BatchSizes, CheckpointPolicy, Ema, Evaluation, Recipe, Schedule, Workers

__all__ = [
    "Augment",
    "Augmentation",
    "BatchSizes",
    "CheckpointPolicy",
    "Data",
    "Ema",
    "Evaluation",
    "Loss",
    "Model",
    "Optimizer",
    "Recipe",
    "Resizing",
    "Schedule",
    "Source",
    "Workers",
    "as_yaml",
    "changed_keys",
    "json_schema",
    "leaves",
    "parse_recipe",
    "read_recipe",
    "stored_model",
    "stored_recipe",
]
