"""Which column is meant, and which class a value names: one rule for lists and Parquet."""

from __future__ import annotations

import pytest

from stoker.dataset.prepare.sources import columns
from stoker.dataset.prepare.sources.columns import LABEL_COLUMNS, choose_column, class_names, label_text
from stoker.errors import DatasetError


@pytest.mark.parametrize("name", ["label", "labels", "class", "class_name", "category", "target", "Label"])
def test_each_usual_name_of_the_column_of_labels_is_known(name: str) -> None:
    found = choose_column(["x", name, "y"], None, LABEL_COLUMNS, option="--label-column", purpose="p", where="w")
    assert found == name


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1, "1"), (1.0, "1"), ("1", "1"), ("1.0", "1"), ("+1.0", "1"), ("-2.0", "-2"), (-2.0, "-2"), (1.5, "1.5"),
        ("+1", "+1"), ("-3", "-3"), ("007", "007"), (" cat ", "cat"), ("1.2.3", "1.2.3"), ("--x", "--x"), ("1-", "1-"),
        ("1.0-", "1.0-"), ("X", "X"), ("X1.0", "X1.0"), ("1e3", "1e3"), ("\u0661", "\u0661"),
        (True, None), (False, None), (None, None), ([1], None), (float("nan"), None), (float("inf"), None), ("", None),
        ("  ", None), (b"cat", None),
    ],
)  # fmt: skip
def test_a_whole_number_is_one_class_however_it_is_written_and_what_names_none_is_none(
    value: object, text: str | None
) -> None:
    assert label_text(value) == text


def test_classes_are_in_the_order_of_numbers_where_all_are_numbers_and_else_of_text() -> None:
    assert class_names({"10", "9", "-1", "2.5"}, where="w", option="o")[0] == ("-1", "2.5", "9", "10")
    assert class_names({"10", "9", "cat"}, where="w", option="o")[0] == ("10", "9", "cat")


def test_the_most_classes_are_taken_and_one_more_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert columns.MOST_CLASSES == 250_000
    monkeypatch.setattr(columns, "MOST_CLASSES", 3)
    assert class_names({"a", "b", "c"}, where="w", option="o")[1] == {"a": 0, "b": 1, "c": 2}
    with pytest.raises(DatasetError, match=r"w has 4 different labels, more than 3: .* with o"):
        class_names({"a", "b", "c", "d"}, where="w", option="o")


@pytest.mark.parametrize("label", ["--1", "+-1", "-", "+", ".", "", "1.2.3", "\u0661", "1e5", "0x1", "1_0"])
def test_what_only_looks_like_a_number_is_a_name(label: str) -> None:
    assert class_names({label, "10", "9"}, where="list.csv", option="--label-column")[0] == tuple(
        sorted({label, "10", "9"})
    )
