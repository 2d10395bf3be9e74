"""Charts as small inline SVG: no script, no library, colours from the page's CSS, so that they follow light and dark.

A chart is a pure function of its numbers. What is not measured (None, NaN) is left out of the drawing; a chart with
nothing to draw is empty Markup. Every mark has a <title>, which browsers show on hover and screen readers read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from markupsafe import Markup, escape

from factory.schema import Estimate

WIDTH, HEIGHT = 440, 250
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 42
ROW = 30  # height of one row of an interval plot
Show = Callable[[float], str]
_NOTHING = 1e-100  # a spread below it cannot be cut into steps


class Point(NamedTuple):
    """A value at x with its interval; NaN bounds draw none."""

    x: float
    y: float
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True, slots=True)
class Series:
    """One line. `tone` 1 to 4 picks its colour."""

    name: str
    points: Sequence[Point]
    tone: int = 1
    marks: bool = True  # a dot at every point; without, the line alone


def point(x: float, estimate: Estimate | float | None) -> Point | None:
    """A measured value as a point; None when it was not measured."""
    if estimate is None:
        return None
    value = Estimate(estimate, math.nan, math.nan) if isinstance(estimate, int | float) else estimate
    return None if math.isnan(value.value) else Point(x, *value)


def points(values: Iterable[tuple[float, Estimate | float | None]]) -> list[Point]:
    """Those of the values that were measured."""
    return [p for x, value in values if (p := point(x, value)) is not None]


# ------------------------------------------------------------------------------------------------------------ lines


class Scale(NamedTuple):
    """A linear map from values to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def lines(
    series: Sequence[Series],
    *,
    title: str,
    x_name: str,
    show: Show = "{:.3g}".format,
    whole_x: bool = False,
    zero: bool = False,
    breaks: Sequence[float] = (),
) -> Markup:
    """Lines with intervals. `whole_x`: x counts something; `zero`: the y axis holds 0; `breaks`: dashed rules."""
    drawn = [s for s in series if s.points]
    if not drawn:
        return Markup()
    everything = [p for s in drawn for p in s.points]
    y = _y_scale(everything, zero)
    x = _x_scale(everything, whole_x)
    parts = [_grid(y, show), _x_axis(x, x_name, whole_x)]
    parts += [_tag("line", "rule", x1=x(at), x2=x(at), y1=TOP, y2=HEIGHT - BOTTOM) for at in breaks]
    parts += [_line(s, x, y, show, x_name) for s in drawn]
    return _svg(Markup().join(parts), HEIGHT, title, "lines")


def _y_scale(everything: Sequence[Point], zero: bool) -> Scale:
    values = [v for p in everything for v in (p.y, p.low, p.high) if math.isfinite(v)]
    low, high = min(values), max(values)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high - low <= max(1e-12 * max(abs(low), abs(high)), _NOTHING):
        room = abs(high) / 2 if abs(high) > _NOTHING else 0.5
        low, high = low - room, high + room
    steps = ticks(low, high)
    return Scale(min(low, steps[0]), max(high, steps[-1]), HEIGHT - BOTTOM, TOP)


def _x_scale(everything: Sequence[Point], whole: bool) -> Scale:
    low, high = min(p.x for p in everything), max(p.x for p in everything)
    if low == high:
        low, high = low - 1, high + 1
    margin = 0.06 * (high - low) if whole else 0.0
    return Scale(low - margin, high + margin, LEFT, WIDTH - RIGHT)


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers in steps of 1, 2 or 5 that cover [low, high]."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _grid(y: Scale, show: Show) -> Markup:
    parts = []
    for value in ticks(y.low, y.high):
        if y.low - 1e-9 <= value <= y.high + 1e-9:
            parts.append(_tag("line", "grid", x1=LEFT, x2=WIDTH - RIGHT, y1=y(value), y2=y(value)))
            parts.append(_text(show(value), LEFT - 7, y(value) + 5, "end"))
    return Markup().join(parts)


def _x_axis(x: Scale, name: str, whole: bool) -> Markup:
    wanted = [t for t in ticks(x.low, x.high) if x.low <= t <= x.high]
    if whole:
        wanted = sorted({float(round(t)) for t in wanted})
    labels = [_text(f"{t:g}", x(t), HEIGHT - BOTTOM + 18, "middle") for t in wanted if x.low <= t <= x.high]
    return Markup().join([*labels, _text(name, (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 3, "middle")])


def _line(series: Series, x: Scale, y: Scale, show: Show, x_name: str) -> Markup:
    path = " ".join(f"{x(p.x):.1f},{y(p.y):.1f}" for p in series.points)
    parts = [_tag("polyline", f"line t{series.tone}", points=path)]
    for p in series.points if series.marks else ():
        parts.append(_mark(f"{series.name}, {x_name} {p.x:g}", p, series.tone, show, x(p.x), y))
    if not series.marks and len(series.points) == 1:
        only = series.points[0]
        parts.append(_mark(f"{series.name}, {x_name} {only.x:g}", only, series.tone, show, x(only.x), y))
    return Markup().join(parts)


def _mark(name: str, p: Point, tone: int, show: Show, at: float, y: Scale) -> Markup:
    bar = Markup()
    if math.isfinite(p.low) and math.isfinite(p.high) and p.high > p.low:
        bar = _tag("line", f"bar t{tone}", x1=at, x2=at, y1=y(p.low), y2=y(p.high))
    dot = _tag("circle", f"dot t{tone}", cx=at, cy=y(p.y), r=4)
    return Markup("<g><title>{}</title>{}{}</g>").format(tell(name, p, show), bar, dot)


def tell(name: str, p: Point, show: Show) -> str:
    """A point in words: name: value (low to high)."""
    interval = f" ({show(p.low)} to {show(p.high)})" if math.isfinite(p.low) and math.isfinite(p.high) else ""
    return f"{name}: {show(p.y)}{interval}"


# ------------------------------------------------------------------------------------------------- rows of intervals


def rows(
    groups: Sequence[tuple[str, Sequence[Point | None]]], names: Sequence[tuple[str, int]], *, title: str, show: Show
) -> Markup:
    """For every group a dot with its interval for each of `names` (with their tones), on one axis from 0 to 1."""
    groups = [(label, values) for label, values in groups if any(values)]
    if not groups:
        return Markup()
    height = len(groups) * ROW + 24
    x = Scale(0.0, 1.0, 150, WIDTH - RIGHT)
    parts = []
    for at in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(_tag("line", "grid", x1=x(at), x2=x(at), y1=0, y2=height - 20))
        parts.append(_text(show(at), x(at), height - 4, "end" if at == 1 else "middle"))
    for i, (label, values) in enumerate(groups):
        middle = ROW * (i + 0.5)
        parts.append(_text(label, 142, middle + 4, "end"))
        spread = 9.0 / max(len(values) - 1, 1)
        for j, ((name, tone), value) in enumerate(zip(names, values, strict=True)):
            if value is not None:
                level = middle + (j - (len(values) - 1) / 2) * spread
                parts.append(_row_mark(f"{label}, {name}", value, tone, show, x, level))
    return _svg(Markup().join(parts), height, title, "rows")


def _row_mark(name: str, p: Point, tone: int, show: Show, x: Scale, at: float) -> Markup:
    bar = Markup()
    if math.isfinite(p.low) and math.isfinite(p.high):
        bar = _tag("line", f"bar t{tone}", x1=x(p.low), x2=x(p.high), y1=at, y2=at)
    dot = _tag("circle", f"dot t{tone}", cx=x(p.y), cy=at, r=4)
    return Markup("<g><title>{}</title>{}{}</g>").format(tell(name, p, show), bar, dot)


# --------------------------------------------------------------------------------------------------------- elements


def _svg(content: Markup, height: float, title: str, kind: str) -> Markup:
    return Markup('<svg class="{}" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        kind, WIDTH, f"{height:g}", title, content
    )


def _tag(name: str, kind: str, **attributes: float | str) -> Markup:
    listed = Markup(" ").join(
        Markup('{}="{}"').format(key, f"{value:.1f}" if isinstance(value, float) else value)
        for key, value in attributes.items()
    )
    return Markup('<{} class="{}" {}/>').format(name, kind, listed)


def _text(text: str, x: float, y: float, anchor: str) -> Markup:
    return Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>').format(f"{x:.1f}", f"{y:.1f}", anchor, escape(text))
