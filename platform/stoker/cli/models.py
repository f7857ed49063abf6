"""List model versions and aliases, move and roll back an alias, delete a version.

stoker models                                 all models (or: stoker models list [NAME])
stoker models alias digits@3 production       point digits@production at version 3
stoker models rollback digits production      point it at the version before, as its history tells
stoker models delete digits@2                 refused if an alias names the version; its number is not used again
stoker models import efficientnet_lite0 imagenet-lite0       publish weights that were trained elsewhere
"""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

from stoker.cli import import_model
from stoker.errors import ModelError
from stoker.registry import Registry
from stoker.registry.listing import Contents
from stoker.registry.registry import version_number
from stoker.storage import locate

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _add_options(parser, storage=os.environ.get("STOKER_STORAGE"), is_json=False)
    actions = parser.add_subparsers(
        dest="action", metavar="ACTION", help="list (the default), alias, rollback, delete, import"
    )
    listing = actions.add_parser("list", help="models, versions and aliases with their history")
    listing.add_argument("name", nargs="?", metavar="NAME", help="one model (default: all)")
    alias = actions.add_parser("alias", help="point an alias at a version")
    alias.add_argument("reference", metavar="NAME@VERSION")
    alias.add_argument("alias", metavar="ALIAS")
    rollback = actions.add_parser("rollback", help="point an alias at the version before")
    rollback.add_argument("name", metavar="NAME")
    rollback.add_argument("alias", metavar="ALIAS")
    delete = actions.add_parser("delete", help="delete a version that no alias names")
    delete.add_argument("reference", metavar="NAME@VERSION")
    imported = actions.add_parser(
        "import",
        help="publish weights that were trained elsewhere",
        description=import_model.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    import_model.add_own_arguments(imported)
    for action in (listing, alias, rollback, delete, imported):
        _add_options(action, storage=argparse.SUPPRESS, is_json=argparse.SUPPRESS)


def run(given: argparse.Namespace) -> None:
    if not given.storage:
        raise ModelError("no storage given for models; give --storage s3://bucket or set STOKER_STORAGE")
    if given.action == "import":
        import_model.run(given)
        return
    registry = Registry(locate(given.storage, timeout_s=10))
    action = {"alias": _alias, "rollback": _rollback, "delete": _delete}.get(given.action, _list)
    content, text = action(registry, given)
    print(json.dumps(content) if given.json else text)


def _add_options(parser: argparse.ArgumentParser, *, storage: str | None, is_json: bool | str) -> None:
    parser.add_argument("--storage", default=storage, help="default: STOKER_STORAGE")
    parser.add_argument("--json", action="store_true", default=is_json, help="print JSON, for programs")


def _list(registry: Registry, given: argparse.Namespace) -> tuple[Any, str]:
    name = getattr(given, "name", None)
    contents = registry.contents()
    if name is not None and name not in contents:
        registry.resolve(name)  # refuses it, with the nearest one
    found = [_model(registry, model, contents[model]) for model in ([name] if name else contents)]
    text = "\n".join(line for model in found for line in _lines(model))
    return found, text or f"no models in {registry.location}; stoker publish RUN MODEL publishes a first version"


def _model(registry: Registry, name: str, contents: Contents) -> dict[str, Any]:
    return {
        "model": name,
        "versions": [_version(registry, name, version) for version in contents.versions],
        "aliases": {alias: _history(registry, name, alias) for alias in contents.aliases},
    }


def _history(registry: Registry, name: str, alias: str) -> dict[str, Any]:
    """Where an alias points; one that cannot be read has the reason in the place of its content."""
    try:
        moves = registry.alias_history(name, alias)
    except ModelError as error:
        return {"version": None, "history": [], "error": str(error)}
    return {"version": moves[-1]["version"] if moves else None, "history": moves}


def _version(registry: Registry, name: str, number: int) -> dict[str, Any]:
    """A row of the list; one that cannot be read has the reason in the place of its content."""
    try:
        version = registry.resolve(f"{name}@{number}")
    except ModelError as error:
        return {"version": number, "error": str(error)}
    return {
        "version": number,
        "published": version.card.published,
        "architecture": version.card.architecture,
        "accuracy": version.card.metrics.accuracy if version.card.metrics else None,
        "run": version.card.run,
        "parent": version.card.parent,
        "licence": version.card.licence,
        "source": version.card.source,
        "bytes": sum(file.bytes for file in version.files.values()),
    }


def _lines(model: dict[str, Any]) -> list[str]:
    aliases = model["aliases"]
    lines = [model["model"]]
    numbers = {row["version"] for row in model["versions"]}
    for row in model["versions"]:
        if "error" in row:
            lines.append(f"  {row['version']:>4}  unreadable: {row['error']}")
            continue
        naming = ", ".join(alias for alias, entry in aliases.items() if entry["version"] == row["version"])
        lines.append(
            f"  {row['version']:>4}  {row['published']}  {_shown_accuracy(row)}  {row['bytes'] / 1e6:>8,.1f} MB  "
            f"{row['architecture']}, "
            + (f"run {row['run']}" if row["run"] else f"imported ({row['licence']})")
            + (f", from {row['parent']}" if row["parent"] else "")
            + (f"  <- {naming}" if naming else "")
        )
    for alias, entry in aliases.items():
        if "error" in entry:
            lines.append(f"  {alias} -> unreadable: {entry['error']}")
            continue
        moves = ", ".join(f"{move['version']} ({move['moved']})" for move in entry["history"])
        missing = "" if entry["version"] in numbers else " (does not exist)"
        lines.append(f"  {alias} -> {entry['version']}{missing}  history: {moves}")
    return lines


def _shown_accuracy(row: dict[str, Any]) -> str:
    return "not measured" if row["accuracy"] is None else f"{row['accuracy']:>12.2%}"


def _alias(registry: Registry, given: argparse.Namespace) -> tuple[Any, str]:
    name, version = _version_of(given.reference)
    registry.set_alias(name, given.alias, version)
    return _moved(name, given.alias, version)


def _rollback(registry: Registry, given: argparse.Namespace) -> tuple[Any, str]:
    return _moved(given.name, given.alias, registry.roll_back_alias(given.name, given.alias))


def _delete(registry: Registry, given: argparse.Namespace) -> tuple[Any, str]:
    name, version = _version_of(given.reference)
    registry.delete(name, version)
    return {"deleted": f"{name}@{version}"}, f"deleted {name}@{version}"


def _moved(name: str, alias: str, version: int) -> tuple[Any, str]:
    text = f"{name}@{alias} is {name}@{version} now; deploy again to serve it"
    return {"model": name, "alias": alias, "version": version}, text


def _version_of(reference: str) -> tuple[str, int]:
    name, _, number = reference.partition("@")
    if not name or not number.isdecimal():
        raise ModelError(f"{reference!r} does not name a version; write it as NAME@VERSION, for example digits@3")
    return name, version_number(number, name)
