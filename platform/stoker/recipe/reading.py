"""Read a :class:`Recipe` from YAML and dotted overrides; errors name the key and the nearest valid one."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from stoker.errors import RecipeError
from stoker.recipe.model_fields import Model
from stoker.recipe.renamed import current_key, warn_of_renamed, with_current_keys
from stoker.recipe.schema import Recipe
from stoker.recipe.yaml_core import CoreLoader

__all__ = [
    "as_yaml",
    "changed_keys",
    "json_schema",
    "leaves",
    "parse_recipe",
    "read_recipe",
    "stored_model",
    "stored_recipe",
]

_Stored = TypeVar("_Stored", bound=BaseModel)

_MAY_CHANGE = ("workers.", "checkpoint.", "tracking.", "storage_timeout_s", "on_nan", "nan_skips", "log_every_s",
               "trace_dir", "data.read_threads", "data.read_deadline_s", "data.hedge_percentile", "data.decode_threads",
               "data.memory_mb", "data.cache_dir", "data.cache_mb")  # fmt: skip
_ROUNDING_ALONE = ("compile", "channels_last")


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read the recipe in the YAML file ``path`` and apply ``overrides`` (``key.sub=value``, value in YAML).

    Raises:
        RecipeError: the file does not exist or is not valid YAML, a key is unknown (the message names the nearest valid
            one) or has a wrong type, or settings contradict each other; the message names file and key.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"{path}: recipe not found; jobs/recipes/ holds the ones that come with stoker") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read as text ({error})") from None
    recipe = parse_recipe(text, str(path), overrides)
    given = [key for key, _ in leaves(_load(text, str(path)))]
    warn_of_renamed([*given, *(override.partition("=")[0] for override in overrides)], str(path))
    return recipe


def parse_recipe(text: str, source: str, overrides: Sequence[str] = ()) -> Recipe:
    """As :func:`read_recipe`, from the YAML in ``text``; ``source`` names it in errors."""
    content = _load(text, source)
    try:
        content = with_current_keys(content)
    except RecipeError as error:
        raise RecipeError(f"{source}: {error}") from None
    for override in overrides:
        _apply(content, override)
    content = with_current_keys(content)  # a section that an override gives as a whole may have old keys too
    try:
        return Recipe.model_validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        raise RecipeError(f"{source}: " + "; ".join(_complaints(error, content))) from None


def stored_recipe(content: dict[str, Any]) -> Recipe:
    """Read a recipe that stoker stored as JSON, such as a model version's.

    Keys may have their old names. Those that a later stoker added are passed over, as its format promises.

    Raises:
        RecipeError: a value is invalid, or a key that it needs is missing.
    """
    return _stored(Recipe, content)


def stored_model(content: dict[str, Any]) -> Model:
    """The section ``model`` of a recipe that stoker stored as JSON, as :func:`stored_recipe` reads it."""
    return _stored(Model, content)


def _stored(section: type[_Stored], content: dict[str, Any]) -> _Stored:
    known = _known(with_current_keys(content) if section is Recipe else content, section)
    try:
        return section.model_validate(known)
    except ValidationError as error:
        complaints = "; ".join(_complaints(error, known))
        raise RecipeError(f"the stored recipe: {complaints}; upgrade stoker, or train the run again") from None


def _known(content: dict[str, Any], section: type[BaseModel]) -> dict[str, Any]:
    """``content`` without the keys that ``section``, or a section below it, does not have."""
    known = {}
    for key, value in content.items():
        if key in section.model_fields:
            below = _section_below(section, key)
            known[key] = _known(value, below) if below and isinstance(value, dict) else value
    return known


def as_yaml(recipe: Recipe) -> str:
    """Write the resolved recipe as YAML, with every default; reading it back gives an equal one."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a recipe, for editors that complete and check YAML."""
    return Recipe.model_json_schema()


def changed_keys(before: Recipe, after: Recipe) -> list[str]:
    """Dotted keys whose values differ, of those that decide what a run computes (not where or how fast).

    What changes nothing but the rounding of sums is not among them, unless the run is ``reproducible``.
    """
    old, new = (dict(leaves(r.model_dump(mode="json"))) for r in (before, after))
    differing = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
    may_change = _MAY_CHANGE if before.reproducible or after.reproducible else _MAY_CHANGE + _ROUNDING_ALONE
    return [key for key in differing if not key.startswith(may_change)]


def _load(text: str, path: str) -> dict[str, Any]:
    try:
        content = yaml.load(text, Loader=CoreLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise RecipeError(f"{path}: not valid YAML:{where}: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of keys to values, this is a {type(content).__name__}")
    return content


def _apply(content: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"override {override!r}: write it as key=value, for example optimizer.lr=0.2")
    try:
        parsed = yaml.load(value, Loader=CoreLoader)
    except yaml.YAMLError:
        raise RecipeError(f"override {key}: {value!r} is not valid YAML") from None
    *parents, last = current_key(key).split(".")
    section: Any = content
    for depth, parent in enumerate(parents):
        if section.get(parent) is None:
            section[parent] = {}
        section = section[parent]
        if not isinstance(section, dict):
            raise RecipeError(f"override {key}: {'.'.join(parents[: depth + 1])} is a value, not a section")
    section[last] = parsed


def _complaints(error: ValidationError, content: dict[str, Any]) -> Iterator[str]:
    for problem in error.errors():
        place = ".".join(str(part) for part in problem["loc"])
        kind, given = problem["type"], problem.get("input")
        if kind == "extra_forbidden":
            yield f"{place}: unknown key{_nearest(problem['loc'])}"
        elif kind == "missing":
            yield f"{place}: missing, and it has no default"
        elif kind == "value_error":
            message = str(problem["ctx"]["error"]) if "ctx" in problem else problem["msg"]
            yield f"{place}: {message}" if place else message
        elif place:
            yield f"{place}: {problem['msg'][0].lower()}{problem['msg'][1:]}, not {_shown(given)}"
        else:
            yield problem["msg"]


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _nearest(place: Iterable[Any]) -> str:
    *parents, wrong = [str(part) for part in place]
    section: type[BaseModel] | None = Recipe
    for parent in parents:
        section = _section_below(section, parent) if section else None
    if section is None:
        return ""
    everywhere = {key.rpartition(".")[2]: key for key in _keys(Recipe)}
    here = difflib.get_close_matches(wrong, list(section.model_fields), n=1, cutoff=0.5)
    if here:
        return f"; did you mean {'.'.join([*parents, here[0]])}?"
    elsewhere = difflib.get_close_matches(wrong, list(everywhere), n=1, cutoff=0.8)
    if elsewhere:
        return f"; did you mean {everywhere[elsewhere[0]]}?"
    return f"; known here: {', '.join(section.model_fields)}"


def _section_below(section: type[BaseModel], key: str) -> type[BaseModel] | None:
    field = section.model_fields.get(key)
    if field is None:
        return None
    for kind in (field.annotation, *get_args(field.annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name in section.model_fields:
        below = _section_below(section, name)
        yield prefix + name
        if below is not None:
            yield from _keys(below, f"{prefix}{name}.")


def leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of nested dicts."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{prefix}{key}.")
    else:
        yield prefix.rstrip("."), value
