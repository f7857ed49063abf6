"""Check that another library still has the parts that we call, override or patch, with the signatures that we know."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from types import ModuleType

__all__ = ["must_accept", "must_equal", "must_have", "resolve", "signature_of"]

_LITERALS = (bool, int, float, str, tuple, type(None))


class _Elided:
    """A default whose text differs between processes or is too long to compare."""

    def __repr__(self) -> str:
        return "..."


def must_have(path: str, signature: str | None, used_by: str) -> None:
    """Assert that ``path`` exists and is called with ``signature``.

    ``path`` is dotted and starts at a module: ``ray.serve.schema.ServeDeploySchema.applications``. Its last parts may
    be attributes, methods, fields of a pydantic model or fields of a dataclass. ``signature`` is what
    :func:`signature_of` gives; None where only the name counts. ``used_by`` is the file of ours to look at.

    Raises:
        AssertionError: the part is gone or is called differently, in one line that says what to look at.
    """
    found = resolve(path, used_by)
    if signature is None:
        return
    if not callable(found):
        raise AssertionError(f"{path} has changed: expected {signature}, found {found!r}; look at {used_by}")
    if (now := signature_of(found)) != signature:
        raise AssertionError(f"{path} has changed: expected {signature}, found {now}; look at {used_by}")


def must_equal(path: str, value: object, used_by: str) -> None:
    """Assert that the constant at ``path`` is ``value``: an environment variable's name, a default, a status.

    Raises:
        AssertionError: the constant is gone or has another value.
    """
    found = resolve(path, used_by)
    if found != value:
        raise AssertionError(f"{path} has changed: expected {value!r}, found {found!r}; look at {used_by}")


def must_accept(path: str, parameters: tuple[str, ...], used_by: str) -> None:
    """Assert that the function, class or model at ``path`` takes ``parameters`` by name; it may take others too.

    Raises:
        AssertionError: it is gone, or does not take them.
    """
    found = resolve(path, used_by)
    fields = _fields(found)
    known = set(fields) if fields else set(inspect.signature(found).parameters)  # type: ignore[arg-type]
    if missing := [name for name in parameters if name not in known]:
        expected, now = ", ".join(missing), ", ".join(sorted(known))
        raise AssertionError(
            f"{path} has changed: expected {expected} among its parameters, found {now}; look at {used_by}"
        )


def signature_of(function: object) -> str:
    """Names, kinds and defaults of the parameters, without annotations: ``(self, address, *, timeout_s=None)``.

    Defaults other than numbers, strings, tuples and None are written as ``...``.
    """
    assert callable(function)
    given = inspect.signature(function)
    parameters = [
        parameter.replace(annotation=inspect.Parameter.empty, default=_plain(parameter.default))
        for parameter in given.parameters.values()
    ]
    return str(given.replace(parameters=parameters, return_annotation=inspect.Signature.empty))


def resolve(path: str, used_by: str) -> object:
    """The object at the dotted ``path``; the longest prefix that is a module is imported.

    Raises:
        AssertionError: nothing is there.
    """
    parts = path.split(".")
    module, rest = _import_prefix(parts)
    if module is None:
        raise AssertionError(f"{parts[0]} cannot be imported, expected {path}; look at {used_by}")
    found: object = module
    where = module.__name__
    for part in rest:
        if not _has(found, part):
            raise AssertionError(f"{path} has changed: expected {part} in {where}, found none; look at {used_by}")
        found, where = _get(found, part), f"{where}.{part}"
    return found


def _import_prefix(parts: list[str]) -> tuple[ModuleType | None, list[str]]:
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
                raise  # the module exists and needs something that is not installed
            continue
        if length == len(parts) > 1:  # ray.serve.deployment is a module, and a function of that name in ray.serve
            above = importlib.import_module(".".join(parts[:-1]))
            return (above, parts[-1:]) if hasattr(above, parts[-1]) else (module, [])
        return module, parts[length:]
    return None, parts


def _fields(owner: object) -> dict[str, object]:
    fields: dict[str, object] = dict(getattr(owner, "model_fields", {}))
    if dataclasses.is_dataclass(owner):
        fields |= {field.name: field for field in dataclasses.fields(owner)}
    return fields


def _has(owner: object, name: str) -> bool:
    return hasattr(owner, name) or name in _fields(owner)


def _get(owner: object, name: str) -> object:
    return getattr(owner, name) if hasattr(owner, name) else _fields(owner)[name]


def _plain(default: object) -> object:
    if default is inspect.Parameter.empty or type(default) in _LITERALS:
        return default
    return _Elided()
