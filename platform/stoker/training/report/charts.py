"""Charts over epochs as inline SVG, without scripts; colours are CSS variables, so light and dark both work."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

__all__ = ["Series", "fraction_chart", "line_chart"]

_WIDTH, _HEIGHT = 520, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 14, 34
_TICKS = 5
_MOST_DOTS = 60


@dataclass(frozen=True)
class Series:
    """A line: (epoch, value) points in order; values that are not finite are omitted."""

    name: str
    points: Sequence[tuple[int, float]]
    is_dashed: bool = False


def line_chart(title: str, series: Sequence[Series], *, unit: str = "", from_zero: bool = False) -> Markup:
    """Draw lines over epochs with a legend of the last values; with ``unit`` ``%``, 1 is shown as 100%.

    Returns empty markup if no value is finite.
    """
    drawn = [Series(s.name, [p for p in s.points if math.isfinite(p[1])], s.is_dashed) for s in series]
    drawn = [s for s in drawn if s.points]
    if not drawn:
        return Markup()
    epochs = [epoch for s in drawn for epoch, _ in s.points]
    values = [value for s in drawn for _, value in s.points]
    ticks = _ticks(0.0 if from_zero else min(values), max(values))
    low, high = ticks[0], ticks[-1]
    first, last = min(epochs), max(epochs)

    def x(epoch: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * ((epoch - first) / (last - first) if last > first else 0.5)

    def y(value: float) -> float:
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - (value - low) / (high - low))

    parts = []
    for tick in ticks:
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">')
        parts.append(f"{_text(tick, unit, high - low)}</text>")
    parts.extend(_epoch_axis(first, last, x))
    for number, s in enumerate(drawn):
        path = " ".join(f"{x(epoch):.1f},{y(value):.1f}" for epoch, value in s.points)
        dash = ' stroke-dasharray="6 4"' if s.is_dashed else ""
        parts.append(f'<polyline class="line s{number}" points="{path}"{dash}/>')
        for epoch, value in s.points if len(s.points) <= _MOST_DOTS else s.points[-1:]:
            label = escape(f"{s.name}, epoch {epoch}: {_text(value, unit, high - low, precise=True)}")
            parts.append(f'<circle class="dot s{number}" cx="{x(epoch):.1f}" cy="{y(value):.1f}" r="3">')
            parts.append(f"<title>{label}</title></circle>")
    legend = "".join(
        f'<span class="key s{n}{" dashed" if s.is_dashed else ""}">{escape(s.name)} '
        f"<b>{_text(s.points[-1][1], unit, high - low, precise=True)}</b></span>"
        for n, s in enumerate(drawn)
    )
    return _figure(title, legend, parts)


def fraction_chart(title: str, kinds: Sequence[str], fractions: Sequence[tuple[int, Sequence[float]]]) -> Markup:
    """Draw a stacked bar for each epoch from (epoch, fraction of each of ``kinds``); the legend has the means."""
    if not fractions:
        return Markup()
    first, last = fractions[0][0], fractions[-1][0]
    pitch = (_WIDTH - _LEFT - _RIGHT) / (last - first + 1)
    height = _HEIGHT - _TOP - _BOTTOM

    def x(epoch: float) -> float:
        return _LEFT + pitch * (epoch - first + 0.5)

    parts = []
    for percent in (0, 25, 50, 75, 100):
        at = _TOP + height * (1 - percent / 100)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{percent}%</text>')
    parts.extend(_epoch_axis(first, last, x))
    width = pitch if pitch < 8 else min(40.0, pitch * 0.85)
    for epoch, values in fractions:
        label = ", ".join(f"{kind} {value:.1%}" for kind, value in zip(kinds, values, strict=True))
        parts.append(f"<g><title>epoch {epoch}: {escape(label)}</title>")
        top = float(_TOP + height)
        for number, value in enumerate(values):
            top -= value * height
            if value > 0:
                parts.append(
                    f'<rect class="k{number}" x="{x(epoch) - width / 2:.1f}" y="{top:.2f}" width="{width:.1f}" '
                    f'height="{value * height:.2f}"/>'
                )
        parts.append("</g>")
    means = [sum(values[number] for _, values in fractions) / len(fractions) for number in range(len(kinds))]
    legend = "".join(
        f'<span class="key box k{number}">{escape(kind)} <b>{mean:.1%}</b></span>'
        for number, (kind, mean) in enumerate(zip(kinds, means, strict=True))
    )
    return _figure(title, legend, parts)


def _figure(title: str, legend: str, parts: Sequence[str]) -> Markup:
    """Wrap ``legend`` and ``parts``, which are markup already, in a figure."""
    body = "".join(parts)
    return Markup(  # noqa: S704 - every text from outside is escaped by the callers
        f'<figure class="chart"><figcaption>{escape(title)}<span class="legend">{legend}</span></figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)} by epoch">{body}</svg></figure>'
    )


def _epoch_axis(first: int, last: int, x: Callable[[float], float]) -> Iterator[str]:
    for epoch in _epoch_ticks(first, last):
        yield f'<text class="tick" x="{x(epoch):.1f}" y="{_HEIGHT - 14}" text-anchor="middle">{epoch}</text>'


def _ticks(low: float, high: float) -> list[float]:
    """Return four to seven round numbers that span ``low`` to ``high``."""
    if high - low < 1e-12 * max(1.0, abs(high)):
        margin = abs(high) / 2 or 1.0
        low, high = low - (margin if low else 0.0), high + margin
    rough = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    start, stop = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * i for i in range(start, stop + 1)]


def _epoch_ticks(first: int, last: int) -> list[int]:
    step = max(1, math.ceil((last - first) / 8))
    ticks = list(range(first, last + 1, step))
    if ticks[-1] != last:
        ticks = [*(epoch for epoch in ticks if last - epoch > step / 2), last]
    return ticks


def _text(value: float, unit: str, span: float, *, precise: bool = False) -> str:
    if unit == "%":
        value, span = value * 100, span * 100
    if abs(value) < span * 1e-9:
        text = "0"
    elif abs(value) >= 1e6 or span < 1e-4 or (precise and abs(value) < 1e-4):
        text = f"{value:.{2 if precise else 1}e}"
    else:
        size = min(span, abs(value)) if precise else span
        text = f"{value:,.{max(0, (2 if precise else 1) - math.floor(math.log10(size)))}f}"
        text = text.rstrip("0").rstrip(".") if "." in text and not precise else text
    return f"{text}%" if unit == "%" else f"{text} {unit}".strip()
