import json
import math

import pytest

from bench.report import Figure, closing_line, figures_table, medians, table


def test_the_median_of_each_measure_is_over_the_rounds_that_have_it() -> None:
    assert medians([{"a": 1.0, "b": 5.0}, {"a": 9.0}, {"a": 2.0}]) == {"a": 2.0, "b": 5.0}


@pytest.mark.parametrize(
    ("figure", "is_missed"),
    [
        (Figure("x", 2.0, 2.0), False),
        (Figure("x", 1.99, 2.0), True),
        (Figure("x", 2.0, 2.0, "below"), True),
        (Figure("x", 2.0, 2.0, "at most"), False),
        (Figure("x", math.nan, 2.0), True),
        (Figure("x", 0.0), False),
    ],
)
def test_a_figure_on_the_wrong_side_of_its_bar_is_missed(figure: Figure, is_missed: bool) -> None:
    assert figure.is_missed is is_missed


def test_the_closing_line_names_what_missed() -> None:
    line = json.loads(closing_line("data", [Figure("good", 3.0, 2.0), Figure("bad", 1.23456, 2.0)]))
    assert line == {"bench": "data", "figures": {"good": 3.0, "bad": 1.235}, "missed": ["bad"]}


def test_tables_have_a_row_a_case_for_people_and_for_documents() -> None:
    assert table(("case", "n"), [("a", "10")]).splitlines() == ["case   n", "a     10"]
    assert table(("case", "n"), [("a", "10")], is_markdown=True).splitlines()[1:] == ["| --- | ---: |", "| a | 10 |"]
    assert "missed" in figures_table([Figure("bad", 1.0, 2.0)])
