"""The label column of Parquet files: which classes there are, and the class of each row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stoker.dataset.prepare.sources.columns import class_names, label_text
from stoker.errors import DatasetError
from stoker.storage import Location

__all__ = ["Labels", "classes_of", "may_hold_bytes"]


@dataclass(frozen=True)
class Labels:
    """The label column of one file, and for each row group (rows, bytes of images as they are stored).

    ``has_bytes`` is False where the file says that every image is null.
    """

    values: Any
    groups: tuple[tuple[int, int], ...]
    has_bytes: bool


def may_hold_bytes(column: Any) -> bool:
    """Whether a column chunk has a value that is not null, or does not say so."""
    statistics = column.statistics
    if statistics is None or not statistics.has_null_count:
        return True
    return bool(statistics.null_count < column.num_values)


def classes_of(
    tables: list[Labels], names: object, where: Location, label: str
) -> tuple[tuple[str, ...], list[NDArray[np.int64]]]:
    """(class names, the number of each row by file, -1 where it has none)."""
    if isinstance(names, list) and names and all(pa.types.is_integer(table.values.type) for table in tables):
        found = [
            table.values.fill_null(0 if pa.types.is_unsigned_integer(table.values.type) else -1) for table in tables
        ]
        most = max((value for column in found if len(column) and (value := pc.max(column).as_py())), default=-1)
        if most >= len(names):
            raise DatasetError(f"{where}: {label} goes up to {most}, but its metadata names {len(names)} classes")
        numbers = [column.to_numpy().astype(np.int64) for column in found]
        for column, table in zip(numbers, tables, strict=True):
            column[table.values.is_null().to_numpy()] = -1
        return tuple(str(name) for name in names), numbers
    texts = [{value: _class(value) for value in table.values.unique().to_pylist()} for table in tables]
    distinct = {text for of_table in texts for text in of_table.values() if text is not None}
    classes, number_of = class_names(distinct, where=f"{where}: {label}", option="--label-column")
    return classes, [_numbers(table.values, of_table, number_of) for table, of_table in zip(tables, texts, strict=True)]


def _class(value: object) -> str | None:
    """The class of a label; None for null and for a negative number, which hubs use for hidden labels."""
    is_hidden = isinstance(value, (int, float)) and not value >= 0
    return None if is_hidden else label_text(value)


def _numbers(values: Any, texts: dict[Any, str | None], number_of: dict[str, int]) -> NDArray[np.int64]:
    """The class of each row: int64 [rows], -1 where it has none. The distinct values alone pass through Python."""
    encoded = pa.chunked_array([values]).combine_chunks() if isinstance(values, pa.Array) else values.combine_chunks()
    coded = encoded.dictionary_encode()
    table = [texts.get(value) for value in coded.dictionary.to_pylist()]
    classes = np.array([-1 if text is None else number_of[text] for text in table] + [-1], np.int64)
    return classes[coded.indices.fill_null(len(table)).to_numpy(zero_copy_only=False)]
