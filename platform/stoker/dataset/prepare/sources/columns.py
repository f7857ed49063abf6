"""The columns and class names of sources that are tables."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from stoker.errors import DatasetError

__all__ = ["LABEL_COLUMNS", "choose_column", "class_names"]

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


def class_names(labels: Collection[str]) -> tuple[tuple[str, ...], dict[str, int]]:
    """(class names, the number of each): sorted as numbers if all are numbers, else as text."""
    if all(label.isascii() and label.isdigit() for label in labels):
        names = tuple(sorted(labels, key=lambda label: (int(label), label)))
    else:
        names = tuple(sorted(labels))
    return names, {name: number for number, name in enumerate(names)}
