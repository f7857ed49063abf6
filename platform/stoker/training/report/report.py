"""Render the report of a run: one self-contained HTML file for desktop and phone, light and dark."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import jinja2
from markupsafe import Markup

from stoker.recipe import Recipe, as_yaml
from stoker.runs.records import KINDS, History, Mistake, Result
from stoker.training.report.charts import Series, fraction_chart, line_chart
from stoker.training.telemetry.progress import duration

__all__ = ["render_report"]

_MATRIX_CLASSES = 20
"""up to this many classes, the whole confusion matrix and every class are shown"""
_PAIRS = 30
_WORST = 25
_BINS = 20


@dataclass(frozen=True)
class _ClassLine:
    """A class in the validation split; ``accuracy`` is None if it has no sample there."""

    name: str
    samples: int
    right: int
    top5: int
    mistaken_for: str
    mistakes: int

    @property
    def accuracy(self) -> float | None:
        return self.right / self.samples if self.samples else None

    @property
    def top5_accuracy(self) -> float | None:
        return self.top5 / self.samples if self.samples else None


@dataclass(frozen=True)
class _Pair:
    label: str
    predicted: str
    count: int
    fraction: float
    """of the label's samples, 0 to 1"""


@dataclass(frozen=True)
class _Cell:
    count: int
    weight: float
    """fraction of the row's samples, 0 to 1"""
    is_correct: bool
    title: str


@dataclass(frozen=True)
class _Picture:
    url: str
    mistake: Mistake
    label: str
    predicted: str


def render_report(recipe: Recipe, history: History, result: Result, pictures: Mapping[int, str] | None = None) -> str:
    """Return the HTML of the report; the same records give the same text.

    ``pictures`` are ``data:`` URLs by sample number, for ``result.mistakes``.
    """
    lines = list(_class_lines(result))
    is_small = len(result.classes) <= _MATRIX_CLASSES
    by_accuracy = sorted((line for line in lines if line.samples), key=lambda line: (line.accuracy, -line.samples))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("stoker.training.report", package_path="."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        recipe=recipe,
        recipe_yaml=as_yaml(recipe),
        result=result,
        charts=_charts(history),
        goodput=_goodput(history),
        spent=_spent(history),
        advice=next((r.goodput.advice for r in reversed(history.epochs) if r.goodput), ""),
        epochs=history.epochs,
        kinds=[kind.replace("_", " ") for kind in KINDS],
        has_macro=any(r.validation and r.validation.macro_accuracy is not None for r in history.epochs),
        has_top5=bool(result.top5_by_class) and len(result.classes) > 5,
        pictures=_pictures(result, pictures or {}),
        headlines=_headlines(history, result),
        lines=lines if is_small else by_accuracy[:_WORST],
        more_lines=[] if is_small else by_accuracy[_WORST:],
        shows_all=is_small,
        unseen=sum(not line.samples for line in lines),
        histogram=[] if is_small else _histogram(lines),
        matrix=_matrix(result) if is_small else [],
        pairs=_pairs(result, 10 if is_small else _PAIRS),
    )


def _headlines(history: History, result: Result) -> list[tuple[str, str]]:
    """Return (value, label) pairs, the most important first."""
    metrics = result.metrics
    headlines = [
        (_percent(metrics.accuracy, 2), "accuracy"),
        *([] if metrics.macro_accuracy is None else [(_percent(metrics.macro_accuracy, 2), "macro accuracy")]),
        (_percent(metrics.top5, 2), "top-5 accuracy"),
        (f"{metrics.loss:.4f}", "validation loss"),
        (f"{result.images_per_s:,.0f}", "images per second"),
        (_duration(result.seconds), "training time"),
        (f"{result.epochs:,}", "epochs"),
        (f"{result.world_size}", "ranks"),
    ]
    spent = _spent(history)
    if spent:
        headlines.append((_percent(spent[0].fraction, 1), "of the time in compute"))
    return [pair for pair in headlines if not (pair[1] == "top-5 accuracy" and len(result.classes) <= 5)]


def _charts(history: History) -> list[Markup]:
    epochs = history.epochs
    evaluated = [(r.epoch + 1, r.validation) for r in epochs if r.validation is not None]
    drawn = [
        line_chart(
            "Loss",
            [
                Series("train", [(r.epoch + 1, r.train_loss) for r in epochs], is_dashed=True),
                Series("validation", [(epoch, metrics.loss) for epoch, metrics in evaluated]),
            ],
        ),
        line_chart(
            "Accuracy",
            [
                Series("train", [(r.epoch + 1, r.train_accuracy) for r in epochs], is_dashed=True),
                Series("validation", [(epoch, metrics.accuracy) for epoch, metrics in evaluated]),
            ],
            unit="%",
        ),
        line_chart(
            "Learning rate", [Series("learning rate", [(r.epoch + 1, r.learning_rate) for r in epochs])], from_zero=True
        ),
        line_chart(
            "Images per second", [Series("all ranks", [(r.epoch + 1, r.images_per_s) for r in epochs])], from_zero=True
        ),
    ]
    return [chart for chart in drawn if chart]


@dataclass(frozen=True)
class _Spent:
    kind: str
    seconds: str
    fraction: float


def _spent(history: History) -> list[_Spent]:
    """Return what the wall time of all epochs was spent on, in the order of ``KINDS``."""
    measured = [record.goodput for record in history.epochs if record.goodput]
    wall = sum(goodput.wall_s for goodput in measured)
    if not wall:
        return []
    sums = {kind: sum(goodput.fractions[kind] * goodput.wall_s for goodput in measured) for kind in KINDS}
    return [_Spent(kind.replace("_", " "), duration(sums[kind]), sums[kind] / wall) for kind in KINDS]


def _goodput(history: History) -> Markup:
    fractions = [(r.epoch + 1, [r.goodput.fractions[kind] for kind in KINDS]) for r in history.epochs if r.goodput]
    return fraction_chart("Time in each epoch", [kind.replace("_", " ") for kind in KINDS], fractions)


def _pictures(result: Result, pictures: Mapping[int, str]) -> list[_Picture]:
    """Return the mistakes that have a picture, in their order."""
    return [
        _Picture(pictures[m.number], m, result.classes[m.label], result.classes[m.predicted])
        for m in result.mistakes
        if m.number in pictures
    ]


def _class_lines(result: Result) -> Iterator[_ClassLine]:
    top5 = result.top5_by_class or (0,) * len(result.classes)
    for label, (name, row) in enumerate(zip(result.classes, result.confusion, strict=True)):
        wrong, other = max(((n, -i) for i, n in enumerate(row) if i != label), default=(0, 0))
        yield _ClassLine(name, sum(row), row[label], top5[label], result.classes[-other] if wrong else "", wrong)


def _pairs(result: Result, most: int) -> list[_Pair]:
    wrong = (
        (count, -label, -predicted)
        for label, row in enumerate(result.confusion)
        for predicted, count in enumerate(row)
        if count and predicted != label
    )
    return [
        _Pair(result.classes[-label], result.classes[-predicted], count, count / sum(result.confusion[-label]))
        for count, label, predicted in heapq.nlargest(most, wrong)
    ]


def _matrix(result: Result) -> list[tuple[str, list[_Cell]]]:
    rows = []
    for label, (name, row) in enumerate(zip(result.classes, result.confusion, strict=True)):
        total = max(1, sum(row))
        cells = [
            _Cell(n, n / total, i == label, f"{n} of {sum(row)} {name} predicted as {result.classes[i]}")
            for i, n in enumerate(row)
        ]
        rows.append((name, cells))
    return rows


def _histogram(lines: list[_ClassLine]) -> list[tuple[str, int, float]]:
    """Return (range of accuracy, classes in it, height relative to the highest bin), from low to high."""
    counts = [0] * _BINS
    for line in lines:
        if line.accuracy is not None:
            counts[min(_BINS - 1, int(line.accuracy * _BINS))] += 1
    width = 100 // _BINS
    return [(f"{i * width} to {(i + 1) * width}%", n, n / max(*counts, 1)) for i, n in enumerate(counts)]


def _percent(fraction: float, digits: int) -> str:
    return f"{fraction * 100:.{digits}f}%"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
