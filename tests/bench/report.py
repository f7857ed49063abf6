"""Report a benchmark: medians over rounds, figures compared with their bars, a table, and a closing line.

Pure functions of numbers: no clock, no file, no process.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["Figure", "closing_line", "figures_table", "medians", "table"]

Measures = dict[str, float]
"""value by measure; names contain the unit"""


@dataclass(frozen=True)
class Figure:
    """A figure of a benchmark; ``bar`` is the least or most that it may be, None if it is only reported."""

    name: str
    value: float
    bar: float | None = None
    sense: Literal["at least", "at most", "below"] = "at least"

    @property
    def is_missed(self) -> bool:
        """Whether the value is on the wrong side of the bar; NaN always is."""
        if self.bar is None:
            return False
        if self.sense == "at least":
            return not self.value >= self.bar
        return not (self.value <= self.bar if self.sense == "at most" else self.value < self.bar)


def medians(rounds: Iterable[Measures]) -> Measures:
    """Return the median of each measure over the rounds that have it."""
    collected: dict[str, list[float]] = {}
    for one in rounds:
        for name, value in one.items():
            collected.setdefault(name, []).append(value)
    return {name: statistics.median(values) for name, values in collected.items()}


def closing_line(bench: str, figures: Sequence[Figure]) -> str:
    """Return the last line of a benchmark, JSON for programs."""
    values = {figure.name: rounded(figure.value) for figure in figures}
    return json.dumps({"bench": bench, "figures": values, "missed": [f.name for f in figures if f.is_missed]})


def figures_table(figures: Sequence[Figure], *, is_markdown: bool = False) -> str:
    """Return a table of the figures and their bars."""
    rows = [
        (
            figure.name,
            f"{rounded(figure.value):g}",
            "" if figure.bar is None else f"{figure.sense} {figure.bar:g}",
            "" if figure.bar is None else ("missed" if figure.is_missed else "met"),
        )
        for figure in figures
    ]
    return table(("figure", "value", "bar", ""), rows, is_markdown=is_markdown)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, is_markdown: bool = False) -> str:
    """Format rows as aligned columns, the first to the left and the others to the right, or as Markdown."""
    if is_markdown:
        ruler = ["---", *["---:"] * (len(head) - 1)]
        return "\n".join("| " + " | ".join(row) + " |" for row in (head, ruler, *rows))
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = []
    for row in (head, *rows):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def rounded(value: float) -> float:
    """Round to four significant digits; the measurements are not more precise."""
    return float(f"{value:.4g}")
