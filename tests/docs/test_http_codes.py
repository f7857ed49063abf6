"""The page about HTTP lists each ``code`` that the endpoint's source can put into an error, and no other."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator

from pages import CHECKOUT, DOCS
from stoker_serve.haproxy import error_pages

ROW = re.compile(r"^\| *(?:\d{3}|other)? *\| (`[a-z_]+`(?:, `[a-z_]+`)*) \|", re.MULTILINE)


def codes_in(source: str) -> set[str]:
    """The second argument of each ``Problem(…)`` and ``KeyRefusal(…)``, and what is assigned to a variable ``code``."""
    return {
        leaf.value
        for expression in _expressions(ast.parse(source))
        for leaf in ast.walk(expression)
        if isinstance(leaf, ast.Constant) and isinstance(leaf.value, str)
    }


def _expressions(tree: ast.AST) -> Iterator[ast.expr]:
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id="Problem" | "KeyRefusal"), args=[_, code, *_]):
                yield code
            case ast.Assign(targets=[ast.Name(id="code")], value=code):
                yield code
            case ast.Assign(targets=[ast.Tuple(elts=names)], value=ast.Tuple(elts=values)):
                yield from (v for n, v in zip(names, values, strict=True) if getattr(n, "id", "") == "code")


def test_each_code_of_the_source_is_on_the_page_and_no_other() -> None:
    page = (DOCS / "reference" / "http.md").read_text(encoding="utf-8")
    listed = {code for row in ROW.findall(page) for code in re.findall(r"`([a-z_]+)`", row)}
    sources = [path.read_text(encoding="utf-8") for path in (CHECKOUT / "serve").glob("*.py")]
    of_haproxy = {json.loads(page)["code"] for name, page in error_pages().items() if name.endswith(".json")}
    assert set().union(of_haproxy, *map(codes_in, sources)) == listed


def test_codes_are_found_in_every_form() -> None:
    source = (
        'Problem(400, "a", "text")\nKeyRefusal(401, "e", "text")\n'
        'code, message = "b", "text"\ncode = {404: "c"}.get(status, "d")\n'
    )
    assert codes_in(source) == {"a", "b", "c", "d", "e"}
