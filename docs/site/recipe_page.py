"""The reference of a recipe's keys, from the JSON Schema that checks it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from stoker.recipe import json_schema
from stoker.recipe.renamed import RENAMED

Schema = dict[str, Any]

BOUNDS = (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
HEAD = """# Recipe

Every key of a recipe, from the JSON Schema that checks it. A recipe is one YAML file; unknown keys, wrong types and
impossible combinations are refused with the key's path and the nearest valid name. On a command line a key is
overridden by its dotted name: `optimizer.lr=0.2`. Keys in **bold** are required.

"""


def recipe_page() -> str:
    """The page in Markdown: a table for the recipe itself and one for each section, in the schema's order."""
    schema = json_schema()
    sections = [("", schema), *_sections("", schema, schema["$defs"])]
    return HEAD + "\n".join(_section(path, section, schema["$defs"]) for path, section in sections) + _renamed()


def _sections(prefix: str, schema: Schema, definitions: Schema) -> Iterator[tuple[str, Schema]]:
    for name, field in schema["properties"].items():
        section = _reference(field, definitions)
        if section is not None:
            yield prefix + name, section
            yield from _sections(f"{prefix}{name}.", section, definitions)


def _reference(field: Schema, definitions: Schema) -> Schema | None:
    """The section that a field holds, if it holds one."""
    for each in (field, *field.get("anyOf", ()), *field.get("allOf", ())):
        if "$ref" in each:
            section = definitions[each["$ref"].rpartition("/")[2]]
            return section if "properties" in section else None
    return None


def _section(path: str, schema: Schema, definitions: Schema) -> str:
    lines = [f"## {path or 'Top level'}\n"]
    if path and schema.get("description"):
        lines.append(f"{_plain(schema['description'])}\n")
    lines += ["| key | type | default | |", "|---|---|---|---|"]
    for name, field in schema["properties"].items():
        full = f"{path}.{name}" if path else name
        key = f"**`{name}`**" if name in schema.get("required", ()) else f"`{name}`"
        section = _reference(field, definitions)
        about = _plain(field.get("description", "") or (section or {}).get("description", ""))
        if section is not None:
            about = f"{about.rstrip('.')}{'; ' if about else ''}see [{full}](#{full.replace('.', '')})"
        lines.append(f"| {key} | {_type(field, definitions)} | {_default(field, section)} | {about} |")
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    return " ".join(text.split()).replace("``", "`").replace("|", "\\|")


def _type(field: Schema, definitions: Schema) -> str:
    if "anyOf" in field:
        return " or ".join(_type(each, definitions) for each in field["anyOf"])
    if "$ref" in field or "allOf" in field:
        target = definitions[(field.get("$ref") or field["allOf"][0]["$ref"]).rpartition("/")[2]]
        return "section" if "properties" in target else _type(target, definitions)
    if "enum" in field:
        return " or ".join(f"`{_value(each)}`" for each in field["enum"])
    if "const" in field:
        return f"`{_value(field['const'])}`"
    kind = {"integer": "whole number", "string": "text", "boolean": "true or false", "array": "list"}.get(
        field.get("type", ""), field.get("type", "any")
    )
    if kind == "list":
        items = field.get("prefixItems") or [field["items"]] if "items" in field or "prefixItems" in field else []
        count = f"{len(field['prefixItems'])} " if "prefixItems" in field else ""
        return f"list of {count}{_type(items[0], definitions)}" if items else kind
    bounds = [f"{sign} {_number(field[name])}" for name, sign in BOUNDS if name in field]
    if field.get("pattern"):
        bounds.append(f"like `{_plain(field['pattern'])}`")
    return f"{kind} {', '.join(bounds)}".strip()


def _number(value: float) -> str:
    return "2⁶³" if value == 2**63 else f"{value:g}"


def _default(field: Schema, section: Schema | None) -> str:
    if "default" in field:
        return f"`{_value(field['default'])}`" if field["default"] is not None else "none"
    return "its own" if section is not None and not section.get("required") else ""


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _renamed() -> str:
    rows = "\n".join(f"| `{old}` | `{new}` |" for old, new in RENAMED.items())
    return f"""
## Renamed keys

Old names stay valid and are warned about once.

| old | now |
|---|---|
{rows}
"""
