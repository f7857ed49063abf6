"""Labels of Parquet files at their bounds: null, negative and hidden ones, and numbers that the names do not reach."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from stoker.dataset.prepare.sources.parquet_labels import Labels, classes_of, may_hold_bytes
from stoker.errors import DatasetError
from stoker.storage import locate

WHERE = locate("/data/train.parquet")
NAMES = ["cat", "dog", "cow"]


def table(values: list[Any], kind: Any = None, chunks: int = 1) -> Labels:
    size = -(-len(values) // chunks) or 1
    parts = [pa.array(values[at : at + size], kind) for at in range(0, len(values), size)]
    return Labels(pa.chunked_array(parts, kind or (parts[0].type if parts else pa.int64())), (), has_bytes=True)


def numbers(*tables: Labels, names: object = None) -> tuple[tuple[str, ...], list[list[int]]]:
    classes, found = classes_of(list(tables), names, WHERE, "label")
    assert all(column.dtype == np.int64 for column in found)
    return classes, [column.tolist() for column in found]


@pytest.mark.parametrize(
    ("statistics", "may"),
    [
        (None, True),
        (SimpleNamespace(has_null_count=False, null_count=0), True),
        (SimpleNamespace(has_null_count=False, null_count=5), True),
        (SimpleNamespace(has_null_count=True, null_count=4), True),
        (SimpleNamespace(has_null_count=True, null_count=5), False),
        (SimpleNamespace(has_null_count=True, null_count=6), False),
    ],
)
def test_a_column_is_empty_only_where_its_statistics_say_that_all_is_null(statistics: Any, may: bool) -> None:
    assert may_hold_bytes(SimpleNamespace(statistics=statistics, num_values=5)) is may


@pytest.mark.parametrize("kind", [pa.int64(), pa.int32(), pa.int8(), pa.uint8(), pa.uint64()])
def test_numbers_with_names_are_the_names_numbers_and_null_is_none(kind: Any) -> None:
    assert numbers(table([2, None, 0, 1], kind), table([], kind), names=NAMES) == (
        ("cat", "dog", "cow"),
        [[2, -1, 0, 1], []],
    )


def test_negative_numbers_hide_a_label_with_and_without_names() -> None:
    assert numbers(table([-1, 1, -7]), names=NAMES)[1] == [[-1, 1, -7]]
    assert numbers(table([-1, 1, -7])) == (("1",), [[-1, 0, -1]])
    assert numbers(table([-0.5, 0.0, float("nan"), 2.0])) == (("0", "2"), [[-1, 0, -1, 1]])


@pytest.mark.parametrize("label", [3, 4, 2**40])
def test_a_number_without_a_name_is_refused_whichever_file_has_it(label: int) -> None:
    for tables in ([table([label]), table([0])], [table([0]), table([label])], [table([]), table([None, label])]):
        with pytest.raises(DatasetError, match=f"label goes up to {label}, but its metadata names 3 classes"):
            numbers(*tables, names=NAMES)
    assert numbers(table([2]), names=NAMES)[1] == [[2]], "and the last name is one"


def test_files_without_a_label_at_all_have_no_row_of_a_class() -> None:
    assert numbers(table([None, None], pa.int64()), table([], pa.int64()), names=NAMES)[1] == [[-1, -1], []]
    assert numbers(table([], pa.int64()), names=NAMES)[1] == [[]]
    assert numbers(table([None, "a"], pa.string()))[1] == [[-1, 0]]


@pytest.mark.parametrize("names", [[], "cat", None, {"0": "cat"}])
def test_what_is_no_list_of_names_names_nothing(names: object) -> None:
    assert numbers(table([7, 5]), names=names) == (("5", "7"), [[1, 0]])


def test_names_are_of_numbers_and_where_one_file_has_texts_these_are_the_classes() -> None:
    found = numbers(table([1, 0]), table(["dog", "cat"]), names=NAMES)
    assert found == (("0", "1", "cat", "dog"), [[1, 0], [3, 2]])


def test_classes_are_the_same_numbers_in_every_file_and_however_it_is_cut() -> None:
    one, other = ["b", None, "a", "b", "c"], ["c", "b"]
    whole = numbers(table(one), table(other))
    assert whole == (("a", "b", "c"), [[1, -1, 0, 1, 2], [2, 1]])
    for chunks in (2, 3, 5):
        assert numbers(table(one, pa.string(), chunks), table(other)) == whole
    assert numbers(Labels(pa.array(one), (), has_bytes=True), table(other)) == whole


def test_more_classes_than_there_can_be_are_refused_with_the_column_and_the_option() -> None:
    with pytest.raises(DatasetError, match=r"train\.parquet: label .*--label-column"):
        numbers(table(list(range(250_001))))
