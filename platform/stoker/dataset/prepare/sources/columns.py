"""The columns and class names of sources that are tables: one rule for lists and Parquet.

The classes are the distinct labels. A whole number is the same class however it is written (1, 1.0, "1"); if all labels
are numbers, classes are in their order, else in that of the text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence

from stoker.errors import DatasetError

__all__ = ["LABEL_COLUMNS", "MOST_CLASSES", "choose_column", "class_names", "label_text"]

_DECIMAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)")
MOST_CLASSES = 250_000
"""more distinct labels than this are ids; the largest public data sets have some 200,000 classes"""
LABEL_COLUMNS = ("label", "labels", "class", "class_name", "category", "target")


def choose_column(
    columns: Sequence[str], given: str | None, words: Sequence[str], *, option: str, purpose: str, where: str
) -> str:
    """Choose the column ``given``, or the only one whose name is in ``words``.

    Raises:
        DatasetError: there is none, or there are several; the message names the columns and ``option``.
    """
    if given is not None:
        if given not in columns:
            raise DatasetError(f"{option} {given}: not a column of {where}, which has {', '.join(columns)}")
        return given
    found = [name for name in columns if name.lower() in words]
    if len(found) == 1:
        return found[0]
    how_many = f"several columns ({', '.join(found)}) could be what" if found else "no column that clearly"
    raise DatasetError(f"{where} has {how_many} {purpose}; choose with {option}: it has {', '.join(columns)}")


def label_text(value: object) -> str | None:
    """The class that ``value`` of a label column names, None if it names none (null, NaN, empty, true or a list)."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    text = str(value).strip()
    number = _number(text)
    if number is None:
        return text if isinstance(value, str) and text else None
    is_written_with_a_point = not text.lstrip("+-").isdigit()
    return str(int(number)) if is_written_with_a_point and number == int(number) else text


def class_names(labels: Collection[str], *, where: str, option: str) -> tuple[tuple[str, ...], dict[str, int]]:
    """(class names, the number of each): sorted as numbers if all are numbers, else as text.

    Raises:
        DatasetError: they are too many to be classes; the message names ``where`` and ``option``.
    """
    if len(labels) > MOST_CLASSES:
        raise DatasetError(
            f"{where} has {len(labels):,} different labels, more than {MOST_CLASSES:,}: these are ids and no classes; "
            f"choose the column of classes with {option}"
        )
    numbers = {label: _number(label) for label in labels}
    if all(number is not None for number in numbers.values()):
        names = tuple(sorted(labels, key=lambda label: (numbers[label], label)))
    else:
        names = tuple(sorted(labels))
    return names, {name: number for number, name in enumerate(names)}


def _number(text: str) -> float | None:
    """The finite number that ``text`` is in decimal notation."""
    if not _DECIMAL.fullmatch(text):
        return None
    number = float(text)
    return number if math.isfinite(number) else None
