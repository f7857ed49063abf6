"""Put a changed module's code into the one that is imported already, so that nothing is imported or collected again."""

from __future__ import annotations

import ast
import functools
import sys
import types
from collections.abc import Iterator
from typing import Any

__all__ = ["transplant"]

_PLAIN = (int, float, str, bytes, tuple, frozenset)


def transplant(module: types.ModuleType, tree: ast.Module, top: int) -> None:
    """Give the functions of ``module`` the code and defaults of those of ``tree``, whose statement ``top`` was changed.

    Names that are assigned there, and those that are assigned from them, get their new values in every module that
    imported them.

    Raises:
        Exception: whatever the changed module raises when it is imported.
    """
    changed = types.ModuleType(module.__name__)
    changed.__dict__.update(__file__=module.__file__, __package__=module.__package__)
    exec(compile(tree, str(module.__file__), "exec"), changed.__dict__)
    _graft(module, changed, module.__name__)
    for name in _names_from(tree, top):
        old, new = getattr(module, name), getattr(changed, name)
        for other in list(sys.modules.values()):
            if vars(other).get(name, other) is old:
                setattr(other, name, new)


def _graft(live: Any, changed: Any, module: str) -> None:
    for name, new in list(vars(changed).items()):
        old = vars(live).get(name)
        if isinstance(new, type):
            if new.__module__ == module and isinstance(old, type):
                _graft(old, new, module)
        elif isinstance(live, type) and isinstance(new, _PLAIN) and not name.startswith("__") and old != new:
            setattr(live, name, new)
        else:
            for mine, other in zip(_functions(old), _functions(new), strict=False):
                if other.__module__ == module:
                    mine.__code__ = other.__code__
                    mine.__defaults__, mine.__kwdefaults__ = other.__defaults__, other.__kwdefaults__


def _functions(value: Any) -> Iterator[types.FunctionType]:
    """The function behind ``value``, under decorators too."""
    if isinstance(value, property):
        for part in (value.fget, value.fset):
            yield from _functions(part)
    elif isinstance(value, functools.cached_property):
        yield from _functions(value.func)
    elif isinstance(value, (staticmethod, classmethod)):
        yield from _functions(value.__func__)
    elif hasattr(value, "__wrapped__"):
        yield from _functions(value.__wrapped__)
    elif isinstance(value, types.FunctionType):
        yield value


def _names_from(tree: ast.Module, top: int) -> list[str]:
    """Names that the statement ``top`` assigns, and those that later statements assign from them."""
    found: list[str] = []
    for number, statement in enumerate(tree.body):
        if not isinstance(statement, (ast.Assign, ast.AnnAssign)):
            continue
        read = {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
        if number == top or (number > top and read & set(found)):
            found += [n.id for n in ast.walk(statement) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
    return found
