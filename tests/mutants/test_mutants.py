"""The tool behind make mutants: which mistakes it makes, and that it makes them in the code that tests run."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path

import pytest

from mutants.__main__ import _PACKAGE, main
from mutants.mutations import mutants_of
from mutants.table import TESTS_OF
from mutants.transplant import transplant

SOURCE = '''
"""A module."""
from dataclasses import dataclass
from functools import cached_property

LIMIT = 3
TWICE = 2 * LIMIT

def is_small(number: int, limit: int = LIMIT) -> bool:
    """Whether it is."""
    if number < 0:
        raise ValueError(f"{number + 1} is negative")
    return number < limit

@dataclass(frozen=True)
class Pair:
    first: int
    second: int = 5

    @property
    def sum(self) -> int:
        return self.first + self.second

    @cached_property
    def largest(self) -> int:
        return max(self.first, self.second)
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    (tmp_path / "mutated_one.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("mutated_one")
    del sys.modules["mutated_one"]


def make(module: object, change: str) -> None:
    tree = ast.parse(SOURCE)
    (mutant,) = [m for m in mutants_of(tree) if f"{m.before} -> {m.after}" == change]
    mutant.make()
    transplant(module, tree, mutant.top)  # type: ignore[arg-type]


def test_bounds_signs_and_constants_are_changed_and_texts_and_types_are_not() -> None:
    found = {f"{m.before} -> {m.after}" for m in mutants_of(ast.parse(SOURCE))}
    assert {"number < 0 -> number <= 0", "number < limit -> number <= limit", "3 -> 4", "max -> min"} <= found
    assert "return number < limit -> return None" in found
    assert not [change for change in found if "negative" in change or "number + 1" in change or "frozen" in change]


def test_a_function_is_changed_where_it_is_used(module: object) -> None:
    is_small = module.is_small  # type: ignore[attr-defined]
    make(module, "number < limit -> number <= limit")
    assert is_small(3)


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        ("self.first + self.second -> self.first - self.second", (-4, 5)),
        ("max -> min", (6, 1)),
        ("5 -> 6", (7, 6)),
    ],
)
def test_properties_and_defaults_of_fields_are_changed_too(module: object, change: str, seen: tuple[int, int]) -> None:
    make(module, change)
    pair = module.Pair(1)  # type: ignore[attr-defined]
    assert (pair.sum, pair.largest) == seen


def test_a_constant_is_changed_with_what_is_made_of_it(module: object) -> None:
    make(module, "3 -> 4")
    assert (module.LIMIT, module.TWICE, module.is_small(3)) == (4, 8, True)  # type: ignore[attr-defined]


def test_the_table_names_modules_and_tests_that_exist() -> None:
    places = [_PACKAGE / name for name in TESTS_OF]
    places += [Path(__file__).parents[1] / test for tests in TESTS_OF.values() for test in tests]
    assert [place for place in places if not place.is_file()] == []


@pytest.mark.long
def test_a_run_prints_a_line_a_module_and_fails_below_the_least(capfd: pytest.CaptureFixture[str]) -> None:
    code = (_PACKAGE / "dataset/order/permutation.py").read_text().splitlines()
    line = str(1 + next(number for number, text in enumerate(code) if "1 <= self.size <=" in text))
    assert main(["order/permutation", "--line", line]) == 0
    assert main(["order/permutation", "--line", line, "--least", "101"]) == 1
    said = capfd.readouterr().out
    assert "dataset/order/permutation.py: " in said
    assert " 0 of 0 noticed" not in said
