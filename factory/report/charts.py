"""Charts as small inline SVG: no script, no library, colours from the page's CSS, so that they follow light and dark;
and sheets of them, files that stand by themselves.

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
SIDE = 150  # room for the names at the left of rows, bars and heat maps
LONGEST = 22  # characters of such a name
HALF = 0.55  # squares of a heat map above it are dark enough for light letters
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
    """One line. `tone` 1 to 8 picks its colour, `look` its dashes and the shape of its marks."""

    name: str
    points: Sequence[Point]
    tone: int = 1
    marks: bool = True  # a dot at every point; without, the line alone
    look: int = 0


def point(x: float, estimate: Estimate | float | None) -> Point | None:
    """A measured value as a point; None when it was not measured."""
    if estimate is None:
        return None
    value = Estimate.alone(estimate) if isinstance(estimate, int | float) else estimate
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
    beside: bool = False,
) -> Markup:
    """Lines with intervals. `whole_x`: x counts something; `zero`: the y axis holds 0; `breaks`: dashed rules;
    `beside`: values at one x stand side by side, as they do where x counts, so that none hides another."""
    drawn = [s for s in series if s.points]
    if not drawn:
        return Markup()
    everything = [p for s in drawn for p in s.points]
    y = _y_scale(everything, zero)
    x = _x_scale(everything, roomy=whole_x or beside)
    parts = [_grid(y, show), _x_axis(x, x_name, whole_x)]
    parts += [_tag("line", "rule", x1=x(at), x2=x(at), y1=TOP, y2=HEIGHT - BOTTOM) for at in breaks]
    step = 7.0 if whole_x or beside else 0.0
    for place, one in enumerate(drawn):
        parts.append(_line(one, _moved(x, step * (place - (len(drawn) - 1) / 2)), y, show, x_name))
    return _svg(Markup().join(parts), HEIGHT, title, "lines")


def _moved(scale: Scale, by: float) -> Scale:
    """The same scale, so many pixels further."""
    return scale._replace(start=scale.start + by, end=scale.end + by)


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


def _x_scale(everything: Sequence[Point], *, roomy: bool) -> Scale:
    low, high = min(p.x for p in everything), max(p.x for p in everything)
    if low == high:
        low, high = low - 1, high + 1
    margin = 0.06 * (high - low) if roomy else 0.0
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
    parts = [_tag("polyline", f"line t{series.tone}", points=path, **_dashes(series.look))]
    marked = series.points if series.marks or len(series.points) == 1 else ()
    for p in marked:
        bar = Markup()
        if math.isfinite(p.low) and math.isfinite(p.high) and p.high > p.low:
            bar = _tag("line", f"bar t{series.tone}", x1=x(p.x), x2=x(p.x), y1=y(p.low), y2=y(p.high))
        says = tell(f"{series.name}, {x_name} {p.x:g}", p, show)
        dot = _dot(x(p.x), y(p.y), 4, series.tone, series.look)
        parts.append(Markup("<g><title>{}</title>{}{}</g>").format(says, bar, dot))
    return Markup().join(parts)


LOOKS = ("", "8 4", "2 4", "9 4 2 4", "4 3", "12 5")
"""Dashes of lines that are to be told apart without colours; the first is whole. Each has a shape of its own, below."""


def _dashes(look: int) -> dict[str, str]:
    dashes = LOOKS[look % len(LOOKS)]
    return {"stroke-dasharray": dashes} if dashes else {}


def _dot(x: float, y: float, r: float, tone: int, look: int) -> Markup:
    """A mark with its middle there, about as large as a circle of that radius."""
    corners = (
        (),
        ((-1, -1), (1, -1), (1, 1), (-1, 1)),
        ((0, -1.3), (1.2, 0.9), (-1.2, 0.9)),
        ((0, -1.4), (1.4, 0), (0, 1.4), (-1.4, 0)),
        ((0, 1.3), (1.2, -0.9), (-1.2, -0.9)),
        ((-1.5, -0.5), (-0.5, -0.5), (-0.5, -1.5), (0.5, -1.5), (0.5, -0.5), (1.5, -0.5), (1.5, 0.5), (0.5, 0.5),
         (0.5, 1.5), (-0.5, 1.5), (-0.5, 0.5), (-1.5, 0.5)),
    )[look % len(LOOKS)]  # fmt: skip
    if not corners:
        return _tag("circle", f"dot t{tone}", cx=x, cy=y, r=r)
    return _tag("polygon", f"dot t{tone}", points=" ".join(f"{x + a * r:.1f},{y + b * r:.1f}" for a, b in corners))


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
    x = Scale(0.0, 1.0, SIDE, WIDTH - RIGHT)
    parts = [_unit_axis(x, height, show)]
    for i, (label, values) in enumerate(groups):
        middle = ROW * (i + 0.5)
        parts.append(_text(_short(label), SIDE - 8, middle + 4, "end"))
        spread = 9.0 / max(len(values) - 1, 1)
        for j, ((name, tone), value) in enumerate(zip(names, values, strict=True)):
            if value is not None:
                level = middle + (j - (len(values) - 1) / 2) * spread
                parts.append(_row_mark(f"{label}, {name}", value, tone, show, x, level))
    return _svg(Markup().join(parts), height, title, "rows")


def column(values: Sequence[tuple[str, Estimate | None]], *, title: str, show: Show = "{:.3g}".format) -> Markup:
    """A dot with its interval for each name, on an axis that fits them all; what was not measured is left out."""
    known = [(name, spot) for name, value in values if (spot := point(0.0, value)) is not None]
    if not known:
        return Markup()
    bounds = [value for _, p in known for value in (p.y, p.low, p.high)]
    x = _around(bounds)._replace(start=SIDE)
    height = len(known) * ROW + 24
    parts = []
    for at in (tick for tick in ticks(x.low, x.high) if x.low <= tick <= x.high):
        parts.append(_tag("line", "grid", x1=x(at), x2=x(at), y1=0, y2=height - 20))
        parts.append(_text(f"{at:g}", x(at), height - 4, "middle"))
    for place, (name, p) in enumerate(known):
        middle = ROW * (place + 0.5)
        parts.append(_text(_short(name), SIDE - 8, middle + 4, "end"))
        parts.append(_row_mark(name, p, 1, show, x, middle))
    return _svg(Markup().join(parts), height, title, "rows")


def _row_mark(name: str, p: Point, tone: int, show: Show, x: Scale, at: float) -> Markup:
    bar = Markup()
    if math.isfinite(p.low) and math.isfinite(p.high):
        bar = _tag("line", f"bar t{tone}", x1=x(p.low), x2=x(p.high), y1=at, y2=at)
    dot = _tag("circle", f"dot t{tone}", cx=x(p.y), cy=at, r=4)
    return Markup("<g><title>{}</title>{}{}</g>").format(tell(name, p, show), bar, dot)


# ------------------------------------------------------------------------------------------------- one against another


class Spot(NamedTuple):
    """A labelled place with its intervals on both axes; NaN bounds draw none."""

    label: str
    x: Estimate
    y: Estimate


class Route(NamedTuple):
    """Places joined in their order, under one name; `tone` and `look` as of a series."""

    name: str
    spots: Sequence[Spot]
    tone: int = 1
    look: int = 0


def path(
    spots: Sequence[Spot], *, title: str, x_name: str, y_name: str, show: Show, rule: float | None = None, tone: int = 1
) -> Markup:
    """Places joined in their order, each with its label: what was gained against what it cost. `rule`: a dashed line
    at that y."""
    return paths([Route("", spots, tone)], title=title, x_name=x_name, y_name=y_name, show=show, rule=rule)


def paths(
    routes: Sequence[Route], *, title: str, x_name: str, y_name: str, show: Show, rule: float | None = None
) -> Markup:
    """Several such paths on the same axes."""
    routes = [route._replace(spots=[s for s in route.spots if _is_known(s)]) for route in routes]
    spots = [spot for route in routes for spot in route.spots]
    if not spots:
        return Markup()
    level = [] if rule is None else [Point(spots[0].x.value, rule)]
    y = _y_scale([*(Point(s.x.value, *s.y) for s in spots), *level], zero=False)
    x = _around([bound for s in spots for bound in s.x])
    parts = [_grid(y, show), _x_axis(x, x_name, whole=False)]
    if rule is not None:
        parts.append(_tag("line", "rule", x1=LEFT, x2=WIDTH - RIGHT, y1=y(rule), y2=y(rule)))
    for route in routes:
        joined = " ".join(f"{x(s.x.value):.1f},{y(s.y.value):.1f}" for s in route.spots)
        parts.append(_tag("polyline", f"line thin t{route.tone}", points=joined, **_dashes(route.look)))
        parts += [_spot(s, route, x, y, show, x_name, y_name) for s in route.spots]
    return _svg(Markup().join(parts), HEIGHT, title, "lines")


def _is_known(spot: Spot) -> bool:
    return math.isfinite(spot.x.value) and math.isfinite(spot.y.value)


def _around(values: Iterable[float]) -> Scale:
    """A scale along x with room at both ends."""
    known = [value for value in values if math.isfinite(value)]
    low, high = min(known), max(known)
    room = 0.08 * (high - low) if high - low > _NOTHING else max(abs(high) / 2, 0.5)
    return Scale(low - room, high + room, LEFT, WIDTH - RIGHT)


def _spot(s: Spot, route: Route, x: Scale, y: Scale, show: Show, x_name: str, y_name: str) -> Markup:
    at, level, tone = x(s.x.value), y(s.y.value), route.tone
    parts = []
    if math.isfinite(s.y.low) and math.isfinite(s.y.high):
        parts.append(_tag("line", f"bar t{tone}", x1=at, x2=at, y1=y(s.y.low), y2=y(s.y.high)))
    if math.isfinite(s.x.low) and math.isfinite(s.x.high):
        parts.append(_tag("line", f"bar t{tone}", x1=x(s.x.low), x2=x(s.x.high), y1=level, y2=level))
    parts.append(_dot(at, level, 5, tone, route.look))
    near_end = at > WIDTH - RIGHT - 40
    parts.append(_text(s.label, at - 8 if near_end else at + 8, level - 8, "end" if near_end else "start"))
    along = tell(x_name, Point(0.0, *s.x), "{:.3g}".format)
    called = f"{route.name}, {s.label}" if route.name else s.label
    says = f"{called}: {along}; {tell(y_name, Point(0.0, *s.y), show)}"
    return Markup("<g><title>{}</title>{}</g>").format(says, Markup().join(parts))


# --------------------------------------------------------------------------------------------------------- histogram


def histogram(
    samples: Sequence[tuple[str, Sequence[float], int]], *, title: str, x_name: str, bins: int = 24
) -> Markup:
    """Shares of each sample (name, values, tone) by value, as outlines over common bins, with a mark at each mean."""
    samples = [(name, values, tone) for name, values, tone in samples if values]
    if not samples:
        return Markup()
    edges = _edges([v for _, values, _ in samples for v in values], bins)
    shares = [_shares(values, edges) for _, values, _ in samples]
    y = _y_scale([Point(0.0, share) for found in shares for share in found], zero=True)
    x = Scale(edges[0], edges[-1], LEFT, WIDTH - RIGHT)
    parts = [_grid(y, "{:.0%}".format), _x_axis(x, x_name, whole=False)]
    for (name, values, tone), found in zip(samples, shares, strict=True):
        mean = math.fsum(values) / len(values)
        outline = _outline(found, edges, x, y)
        parts.append(
            Markup("<g><title>{}</title>{}{}{}</g>").format(
                f"{name}: {len(values):,} answers, mean {mean:.4g}",
                _tag("polygon", f"area t{tone}", points=outline),
                _tag("polyline", f"line t{tone}", points=outline),
                _tag("line", f"mean t{tone}", x1=x(mean), x2=x(mean), y1=HEIGHT - BOTTOM, y2=HEIGHT - BOTTOM + 7),
            )
        )
    return _svg(Markup().join(parts), HEIGHT, title, "lines")


def _edges(values: Sequence[float], bins: int) -> list[float]:
    """Equal bins over all values; whole ones where the values are whole."""
    low, high = min(values), max(values)
    if all(float(value).is_integer() for value in values):
        width = max(1.0, math.ceil((high - low + 1) / bins))
        return [low + i * width for i in range(math.ceil((high - low + 1) / width) + 1)]
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # too close to be cut
        return [low - 0.5, high + 0.5]
    return [low + i * (high - low) / bins for i in range(bins + 1)]


def _shares(values: Sequence[float], edges: Sequence[float]) -> list[float]:
    width, counts = edges[1] - edges[0], [0] * (len(edges) - 1)
    for value in values:
        counts[min(int((value - edges[0]) / width), len(counts) - 1)] += 1
    return [count / len(values) for count in counts]


def _outline(shares: Sequence[float], edges: Sequence[float], x: Scale, y: Scale) -> str:
    corners = [(edges[0], 0.0)]
    for i, share in enumerate(shares):
        corners += [(edges[i], share), (edges[i + 1], share)]
    corners.append((edges[-1], 0.0))
    return " ".join(f"{x(at):.1f},{y(share):.1f}" for at, share in corners)


# ------------------------------------------------------------------------------------------------- bars and heat maps


def bars(values: Sequence[tuple[str, Estimate | None, float]], *, title: str, show: Show, tone: int = 1) -> Markup:
    """Bars that begin at a neutral value of their own (name, value, neutral), on an axis from 0 to 1, with intervals;
    what is not known is left out."""
    known = [(name, value, at) for name, value, at in values if value is not None and math.isfinite(value.value)]
    if not known:
        return Markup()
    height, x = len(known) * ROW + 24, Scale(0.0, 1.0, SIDE, WIDTH - RIGHT)
    parts = [_unit_axis(x, height, show)]
    for i, (name, value, neutral) in enumerate(known):
        middle, ends = ROW * (i + 0.5), sorted((x(neutral), x(value.value)))
        bar = _tag("rect", f"fill t{tone}", x=ends[0], y=middle - 7, width=ends[1] - ends[0], height=14)
        whisker = Markup()
        if math.isfinite(value.low) and math.isfinite(value.high):
            whisker = _tag("line", "whisker", x1=x(value.low), x2=x(value.high), y1=middle, y2=middle)
        parts.append(_text(_short(name), SIDE - 8, middle + 4, "end"))
        says = tell(name, Point(0.0, *value), show)
        parts.append(Markup("<g><title>{}</title>{}{}</g>").format(says, bar, whisker))
        parts.append(_tag("line", "rule", x1=x(neutral), x2=x(neutral), y1=ROW * i + 2, y2=ROW * (i + 1) - 2))
    return _svg(Markup().join(parts), height, title, "rows")


def _unit_axis(x: Scale, height: float, show: Show) -> Markup:
    parts = []
    for at in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(_tag("line", "grid", x1=x(at), x2=x(at), y1=0, y2=height - 20))
        parts.append(_text(show(at), x(at), height - 4, "end" if at == 1 else "middle"))
    return Markup().join(parts)


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


class Heat(NamedTuple):
    """A square of a heat map: how strong (0 to 1, None: not known), what is written in it, and it in words."""

    level: float | None
    text: str
    says: str


def heat(names: Sequence[str], cells: Sequence[Sequence[Heat | None]], *, title: str) -> Markup:
    """A square for every two names: row by column, None where there is none. Empty for fewer than two names."""
    if len(names) < 2:
        return Markup()
    size = min(64.0, (WIDTH - RIGHT - SIDE) / len(names))
    height = size * len(names) + 24
    parts = []
    for i, name in enumerate(names):
        parts.append(_text(f"{_short(name)} · {i + 1}", SIDE - 4, size * (i + 0.5) + 4, "end"))
        parts.append(_text(str(i + 1), SIDE + size * (i + 0.5), size * len(names) + 18, "middle"))
        for j, cell in enumerate(cells[i]):
            if cell is not None:
                parts.append(_square(cell, SIDE + 2 + size * j, size * i, size - 3))
    return _svg(Markup().join(parts), height, title, "rows")


def _square(cell: Heat, x: float, y: float, size: float) -> Markup:
    level = 0.0 if cell.level is None else min(max(cell.level, 0.0), 1.0)
    kind = "heat strong" if level > HALF else "heat"
    box = Markup('<rect x="{}" y="{}" width="{}" height="{}" rx="3" style="--level:{}"/>').format(
        f"{x:.1f}", f"{y:.1f}", f"{size:.1f}", f"{size:.1f}", f"{100 * level:.0f}%"
    )
    text = _text(cell.text, x + size / 2, y + size / 2 + 4, "middle")
    return Markup('<g class="{}"><title>{}</title>{}{}</g>').format(kind, cell.says, box, text)


# ------------------------------------------------------------------------------------------------- a sheet of charts

COLOURS = ("#1f5fd0", "#c2570c", "#7a818a", "#7a3fb5", "#15803d", "#b3124f", "#0e8f9c", "#8a6a00")
"""Of the tones, from 1 on: a page has its own for dark screens. Further lines begin again, on a sheet with other dashes
and shapes."""
HEAD = 26  # height of a chart's caption on a sheet
LINE = 20  # height of a line of a legend
_SHEET = """
text { font: 11px system-ui, sans-serif; fill: #555 } .caption { font-weight: 600; fill: #222 } .legend { fill: #222 }
.grid { stroke: #ddd } .rule { stroke: #999; stroke-dasharray: 4 4 } .bar { stroke-width: 2; opacity: .5 }
.line { fill: none; stroke-width: 2 } .thin { stroke-width: 1.5 }
@media (prefers-color-scheme: dark) { text { fill: #bbb } .grid { stroke: #444 } .caption, .legend { fill: #eee } }
"""
_TONED = ".line.t{0}, .bar.t{0} {{ stroke: {1} }} .dot.t{0} {{ fill: {1} }}\n"


def dress(place: int) -> tuple[int, int]:
    """Tone and look of the line at that place among several on a sheet."""
    return place % len(COLOURS) + 1, place % len(LOOKS)


def sheet(panels: Sequence[tuple[str, Markup]], names: Sequence[str] = (), *, columns: int = 2) -> Markup:
    """Charts under their captions as one picture that stands by itself: an SVG file. `names`: a legend above them, of
    lines dressed by their place. Empty without charts."""
    panels = [(caption, chart) for caption, chart in panels if chart]
    if not panels:
        return Markup()
    columns = min(columns, len(panels))
    wide, high = WIDTH + 20, HEIGHT + HEAD + 10
    room = (columns * wide - 20) / columns
    legend = [_key(name, i, room * (i % columns) + 8, LINE * (i // columns) + 14) for i, name in enumerate(names)]
    top = LINE * math.ceil(len(names) / columns) + (8 if names else 0)
    parts = [_captioned(*panel, wide * (i % columns), top + high * (i // columns)) for i, panel in enumerate(panels)]
    size = columns * wide - 20, top + high * math.ceil(len(panels) / columns)
    frame = Markup('<svg xmlns="http://www.w3.org/2000/svg" width="{0}" height="{1}" viewBox="0 0 {0} {1}">').format(
        *size
    )
    style = _SHEET + "".join(_TONED.format(tone, colour) for tone, colour in enumerate(COLOURS, 1))
    return frame + Markup("<style>{}</style>{}</svg>\n").format(style, Markup().join([*legend, *parts]))


def _captioned(caption: str, chart: Markup, x: float, y: float) -> Markup:
    head = Markup('<text class="caption" x="{}" y="{}">{}</text>').format(x + 4, y + 16, caption)
    chart = chart.replace("<svg ", Markup('<svg preserveAspectRatio="xMidYMin" '), 1)
    inside = Markup('<svg x="{}" y="{}" width="{}" height="{}">{}</svg>').format(x, y + HEAD, WIDTH, HEIGHT, chart)
    return head + inside


def _key(name: str, place: int, x: float, y: float) -> Markup:
    """The name of a line, beside a piece of it."""
    tone, look = dress(place)
    piece = _tag("polyline", f"line t{tone}", points=f"{x:.1f},{y - 4:.1f} {x + 40:.1f},{y - 4:.1f}", **_dashes(look))
    text = Markup('<text class="legend" x="{}" y="{}">{}</text>').format(f"{x + 50:.1f}", f"{y:.1f}", name)
    return Markup("<g>{}{}{}</g>").format(piece, _dot(x + 20, y - 4, 4, tone, look), text)


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
