"""The small mistakes that are tried: one replacement of one piece of syntax each.

Left out is what no test should hold: texts of errors and log lines, types, docstrings, decorators, assertions.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

__all__ = ["Mutant", "mutants_of"]

_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitAnd,
}
_PAIRS = (
    ("min", "max"),
    ("any", "all"),
    ("lower", "upper"),
    ("lstrip", "rstrip"),
    ("partition", "rpartition"),
    ("startswith", "endswith"),
    ("removeprefix", "removesuffix"),
)
_NAMES = {a: b for pair in _PAIRS for a, b in (pair, pair[::-1])}
_UNTOUCHED = (ast.Raise, ast.Assert, ast.Import, ast.ImportFrom)
_TYPES = frozenset({"annotation", "returns", "decorator_list", "format_spec"})
_KEYWORDS = frozenset({"compare", "daemon", "repr", "strict", "thread_name_prefix"})
_MESSAGES = ("Error", "Bad", "BadBody", "BadSample")
"""ends of the names of exceptions, whose arguments are texts"""


@dataclass(frozen=True)
class Mutant:
    """One mistake in the syntax tree that it was found in.

    ``lines``: those that a test must have run to notice it. ``is_outside``: it is outside of the functions' bodies, so
    it happens when the module is imported. ``top``: the number of the module's statement that it is in.
    """

    top: int
    line: int
    lines: frozenset[int]
    is_outside: bool
    before: str
    after: str
    make: Callable[[], None]

    def __str__(self) -> str:
        return f"{self.line}: {self.before} -> {self.after}"


def mutants_of(tree: ast.Module) -> list[Mutant]:
    """All mutants of a module, in the order of its text; ``make`` changes ``tree``, so make one only."""
    found: list[Mutant] = []
    for top, statement in enumerate(tree.body):
        if not _is_all(statement):
            _Finder(top, found).visit(statement, lambda new, top=top: tree.body.__setitem__(top, new), statement, True)
    return found


class _Finder:
    def __init__(self, top: int, found: list[Mutant]) -> None:
        self._top, self._found = top, found

    def visit(self, node: ast.AST, put: Callable[[ast.AST], None], statement: ast.stmt, is_outside: bool) -> None:
        """``put`` replaces ``node`` in the tree; ``statement`` is the innermost one around it."""
        if isinstance(node, _UNTOUCHED) or _is_text(node):
            return
        if isinstance(node, ast.stmt):
            statement = node
        for new in _replacements(node):
            self._add(node, new, put, statement, is_outside)
        for name, value in ast.iter_fields(node):
            if name in _TYPES:
                continue
            inside = is_outside and not (isinstance(node, (ast.FunctionDef, ast.Lambda)) and name == "body")
            for child, place in _children(node, name, value):
                if name in {"test", "ifs"} and not isinstance(child, (ast.Compare, ast.BoolOp, ast.UnaryOp)):
                    self._add(child, ast.UnaryOp(ast.Not(), child), place, statement, inside)
                self.visit(child, place, statement, inside)

    def _add(
        self, node: ast.AST, new: ast.AST, put: Callable[[ast.AST], None], statement: ast.stmt, is_outside: bool
    ) -> None:
        line, last = node.lineno, node.end_lineno  # type: ignore[attr-defined]

        def make() -> None:
            put(ast.fix_missing_locations(ast.copy_location(new, node)))

        lines = frozenset({statement.lineno, *range(line, last + 1)})
        self._found.append(Mutant(self._top, line, lines, is_outside, _shown(node), _shown(new), make))


def _children(node: ast.AST, name: str, value: object) -> Iterator[tuple[ast.AST, Callable[[ast.AST], None]]]:
    if isinstance(value, ast.AST):
        yield value, lambda new: setattr(node, name, new)
    elif isinstance(value, list):
        for i, child in enumerate(value):
            if isinstance(child, ast.AST):
                yield child, lambda new, i=i: value.__setitem__(i, new)


def _replacements(node: ast.AST) -> Iterator[ast.AST]:
    """An empty result is not made None: who asks whether there is one gets the same answer."""
    match node:
        case ast.Compare():
            for i, op in enumerate(node.ops):
                yield _with(node, ops=[*node.ops[:i], _COMPARISONS[type(op)](), *node.ops[i + 1 :]])
        case ast.BinOp() | ast.AugAssign() if type(node.op) in _OPERATORS:
            yield _with(node, op=_OPERATORS[type(node.op)]())
        case ast.BoolOp():
            yield _with(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
        case ast.UnaryOp():
            yield node.operand
        case ast.Constant() if (other := _other(node.value)) is not None:
            yield ast.Constant(other)
        case ast.Return(value=ast.AST() as value) if not (isinstance(value, ast.Constant) and not value.value):
            yield ast.Return(ast.Constant(None))
        case ast.Break():
            yield ast.Continue()
        case ast.Continue():
            yield ast.Break()
        case ast.Expr(value=ast.Call()):
            yield ast.Pass()
        case ast.Name(id=name, ctx=ast.Load()) if name in _NAMES:
            yield ast.Name(_NAMES[name], ast.Load())
        case ast.Attribute(attr=name, ctx=ast.Load()) if name in _NAMES:
            yield _with(node, attr=_NAMES[name])


def _other(value: object) -> object:
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case float():
            return 2 * value or 1.0
        case str():
            return f"XX{value}XX"
        case bytes():
            return b"XX" + value + b"XX"
    return None


def _with(node: ast.AST, **changes: object) -> ast.AST:
    new = copy.copy(node)
    for name, value in changes.items():
        setattr(new, name, value)
    return new


def _is_all(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__"


def _is_text(node: ast.AST) -> bool:
    """A docstring or a text for people."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and _name(node.value).startswith("logger."):
        return True
    if isinstance(node, ast.keyword):
        return node.arg in _KEYWORDS
    return isinstance(node, ast.Call) and _name(node).endswith(_MESSAGES)


def _name(call: ast.Call) -> str:
    return ast.unparse(call.func)


def _shown(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= 100 else f"{text[:97]}..."
