"""Charts: right places, nothing invented, well-formed."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings, strategies as st

from factory.report import charts
from factory.report.charts import Point, Series
from factory.schema import Estimate

SVG = "{http://www.w3.org/2000/svg}"


def parsed(chart: str) -> ElementTree.Element:
    """The chart as XML (inline SVG in HTML needs no namespace; ElementTree does not mind)."""
    return ElementTree.fromstring(chart)


def test_nothing_to_draw_is_nothing() -> None:
    assert charts.lines([], title="t", x_name="round") == ""
    assert charts.lines([Series("s", [])], title="t", x_name="round") == ""
    assert charts.rows([("kind", [None])], [("start", 1)], title="t", show=str) == ""


def test_unmeasured_points_are_left_out() -> None:
    nan = Estimate(math.nan, math.nan, math.nan)
    found = charts.points([(0, Estimate(0.1, 0.0, 0.2)), (1, None), (2, nan), (3, 0.5)])
    assert [p.x for p in found] == [0, 3]
    assert math.isnan(found[1].low)


def test_a_line_goes_through_its_points_and_bars_span_their_intervals() -> None:
    chart = parsed(
        charts.lines([Series("rate", [Point(0, 0.0, 0.0, 0.5), Point(1, 1.0, 0.5, 1.0)])], title="t", x_name="x")
    )
    line = chart.find("polyline")
    assert line is not None
    (x0, y0), (x1, y1) = (tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split())
    assert x0 < x1
    assert y0 == charts.HEIGHT - charts.BOTTOM
    assert y1 == charts.TOP
    bars = [e for e in chart.iter("line") if e.attrib["class"].startswith("bar")]
    middle = (charts.TOP + charts.HEIGHT - charts.BOTTOM) / 2
    assert [sorted((float(b.attrib["y1"]), float(b.attrib["y2"]))) for b in bars] == [[middle, y0], [y1, middle]]
    assert [title.text for title in chart.iter("title")] == ["rate, x 0: 0 (0 to 0.5)", "rate, x 1: 1 (0.5 to 1)"]


def test_a_single_point_and_a_flat_line_can_be_drawn() -> None:
    single = parsed(charts.lines([Series("s", [Point(0, 5.0)], marks=False)], title="t", x_name="step"))
    assert len(list(single.iter("circle"))) == 1
    flat = parsed(charts.lines([Series("s", [Point(0, 0.0), Point(1, 0.0)])], title="t", x_name="x", zero=True))
    assert flat.find("polyline") is not None
    tiny = parsed(charts.lines([Series("s", [Point(0, 0.0), Point(1, 5e-324)])], title="t", x_name="x"))
    assert tiny.find("polyline") is not None


def test_whole_x_has_whole_labels_and_breaks_are_drawn() -> None:
    series = [Series("s", [Point(float(i), float(i)) for i in range(3)])]
    chart = parsed(charts.lines(series, title="t", x_name="round", whole_x=True, breaks=[0.5]))
    labels = [e.text for e in chart.iter("text")]
    assert {"0", "1", "2", "round"} <= set(labels)
    assert "0.5" not in labels[-4:]
    assert len([e for e in chart.iter("line") if e.attrib["class"] == "rule"]) == 1


def test_rows_share_one_axis() -> None:
    groups: list[tuple[str, list[Point | None]]] = [
        ("bullets", [Point(0, 0.25, 0.1, 0.4), Point(0, 0.75, 0.6, 0.9)]),
        ("title", [None, Point(0, 1.0)]),
    ]
    chart = parsed(charts.rows(groups, [("start", 3), ("round 2", 1)], title="by kind", show="{:.0%}".format))
    titles = [title.text for title in chart.iter("title")]
    assert titles == ["bullets, start: 25% (10% to 40%)", "bullets, round 2: 75% (60% to 90%)", "title, round 2: 100%"]
    start, end, last = (float(dot.attrib["cx"]) for dot in chart.iter("circle"))
    assert start < end < last == charts.WIDTH - charts.RIGHT


def test_names_are_escaped() -> None:
    series = [Series("<b>&\"'", [Point(0, 1.0)])]
    chart = charts.lines(series, title='"><script>', x_name="<i>")
    assert "<b>" not in chart
    assert "<script>" not in chart
    assert "<i>" not in chart
    assert parsed(chart).attrib["aria-label"] == '"><script>'


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.0, 1.0, [0, 0.5, 1.0]), (0.0, 0.62, [0, 0.2, 0.4, 0.6, 0.8]), (-98.0, -61.0, [-100, -90, -80, -70, -60])],
)
def test_ticks_are_round_and_cover(low: float, high: float, expected: list[float]) -> None:
    assert charts.ticks(low, high) == pytest.approx(expected)


@settings(deadline=None)
@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_cover_any_range(low: float, width: float) -> None:
    found = charts.ticks(low, low + width)
    slack = 1e-6 * max(abs(low), width)
    assert 2 <= len(found) <= 7
    assert found[0] <= low + slack
    assert found[-1] >= low + width - slack


@settings(deadline=None)
@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=20), st.booleans())
def test_every_chart_is_finite(values: list[float], zero: bool) -> None:
    chart = charts.lines(
        [Series("s", [Point(float(i), v) for i, v in enumerate(values)])], title="t", x_name="x", zero=zero
    )
    assert not re.search(r"\b(nan|inf)\b", str(parsed(chart).find("polyline").attrib["points"]))  # type: ignore[union-attr]


# ------------------------------------------------------------------------------------------- other kinds of chart


def test_series_at_one_x_stand_side_by_side() -> None:
    series = [Series(str(i), [Point(1, 0.5, 0.4, 0.6)], tone=i) for i in (1, 2)]
    chart = parsed(charts.lines(series, title="t", x_name="round", whole_x=True))
    first, second = (float(dot.attrib["cx"]) for dot in chart.iter("circle"))
    assert second - first == pytest.approx(7)


def test_a_path_joins_its_spots_in_order_with_both_intervals() -> None:
    spots = [
        charts.Spot("0", Estimate(0.0, 0.0, 0.0), Estimate(0.2, 0.1, 0.3)),
        charts.Spot("1", Estimate(4.0, 3.0, 5.0), Estimate(0.6, 0.5, 0.7)),
        charts.Spot("lost", Estimate(math.nan, math.nan, math.nan), Estimate(0.6, 0.5, 0.7)),
    ]
    chart = parsed(charts.path(spots, title="t", x_name="KL", y_name="rate", show="{:.0%}".format, rule=0.5))
    titles = [title.text for title in chart.iter("title")]
    assert titles == ["0: KL: 0 (0 to 0); rate: 20% (10% to 30%)", "1: KL: 4 (3 to 5); rate: 60% (50% to 70%)"]
    bars = [e for e in chart.iter("line") if e.attrib["class"].startswith("bar")]
    assert len(bars) == 4
    (rule,) = [e for e in chart.iter("line") if e.attrib["class"] == "rule"]
    dots = [float(dot.attrib["cy"]) for dot in chart.iter("circle")]
    assert dots[1] < float(rule.attrib["y1"]) < dots[0]
    assert charts.path([], title="t", x_name="x", y_name="y", show=str) == ""


def test_a_histogram_holds_every_value_once() -> None:
    """Values 1, 1, 2 and 4: over the bins 1, 2, 3, 4 the shares are 1/2, 1/4, 0, 1/4."""
    chart = parsed(charts.histogram([("a", [1, 1, 2, 4], 1), ("none", [], 2)], title="t", x_name="tokens"))
    line = chart.find("g/polyline")
    assert line is not None
    levels = [float(pair.split(",")[1]) for pair in line.attrib["points"].split()]
    base = charts.HEIGHT - charts.BOTTOM
    heights = [base - level for level in levels[1:-1:2]]
    assert [h / heights[0] for h in heights] == pytest.approx([1, 0.5, 0, 0.5], abs=0.01)
    assert [t.text for t in chart.iter("title")] == ["a: 4 answers, mean 2"]
    assert charts.histogram([("a", [], 1)], title="t", x_name="x") == ""


@settings(deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50))
def test_shares_of_a_histogram_add_up_to_one(values: list[float]) -> None:
    shares = charts._shares(values, charts._edges(values, 24))
    assert math.fsum(shares) == pytest.approx(1)


def test_bars_reach_from_the_neutral_value_to_theirs() -> None:
    values = [("longer", Estimate(0.75, 0.6, 0.9), 0.5), ("flips", Estimate(0.25, 0.2, 0.3), 0.0), ("lists", None, 0.5)]
    chart = parsed(charts.bars(values, title="t", show="{:.0%}".format))
    quarter = (charts.WIDTH - charts.RIGHT - charts.SIDE) / 4
    found = [(float(r.attrib["x"]), float(r.attrib["width"])) for r in chart.iter("rect")]
    middle = charts.SIDE + 2 * quarter
    assert found[0] == pytest.approx((middle, quarter), abs=0.1)
    assert found[1] == pytest.approx((charts.SIDE, quarter), abs=0.1)
    assert [t.text for t in chart.iter("title")] == ["longer: 75% (60% to 90%)", "flips: 25% (20% to 30%)"]
    assert charts.bars([("a", None, 0.5)], title="t", show=str) == ""


def test_a_heat_map_has_a_square_for_every_two() -> None:
    cells: list[list[charts.Heat | None]] = [
        [charts.Heat(None, "", "a"), charts.Heat(0.8, "0.80", "a and b: 0.8")],
        [charts.Heat(0.8, "0.80", "x"), None],
    ]
    chart = parsed(charts.heat(["a", "<b>"], cells, title="t"))
    levels = [rect.attrib["style"] for rect in chart.iter("rect")]
    assert levels == ["--level:0%", "--level:80%", "--level:80%"]
    assert [g.attrib["class"] for g in chart.iter("g")] == ["heat", "heat strong", "heat strong"]
    assert charts.heat(["a"], [[None]], title="t") == ""


def test_long_names_are_cut() -> None:
    chart = charts.bars([("x" * 40, Estimate(0.5, 0.4, 0.6), 0.5)], title="t", show=str)
    assert f">{'x' * (charts.LONGEST - 1)}…<" in chart


def test_a_column_has_a_dot_for_each_name_on_an_axis_of_its_own() -> None:
    values = [("dpo", Estimate(10.0, 5.0, 15.0)), ("lost", None), ("kto", Estimate(20.0, math.nan, math.nan))]
    chart = parsed(charts.column(values, title="t"))
    assert [t.text for t in chart.iter("title")] == ["dpo: 10 (5 to 15)", "kto: 20"]
    low, high = (float(dot.attrib["cx"]) for dot in chart.iter("circle"))
    [bar] = [line for line in chart.iter("line") if line.attrib["class"] == "bar t1"]
    ends = float(bar.attrib["x1"]), float(bar.attrib["x2"])
    assert ends[0] < low < ends[1] < high
    assert sum(ends) / 2 == pytest.approx(low, abs=0.1)
    assert high - low == pytest.approx(ends[1] - ends[0], abs=0.3)
    assert min(ends) >= charts.SIDE
    assert high <= charts.WIDTH
    assert charts.column([("lost", None)], title="t") == ""


def test_lines_beside_each_other_hide_nothing() -> None:
    series = [Series(str(i), [Point(0, 0.5, 0.4, 0.6), Point(0.3, 0.5)], tone=i) for i in (1, 2, 3)]
    chart = parsed(charts.lines(series, title="t", x_name="flip", beside=True))
    places = [float(dot.attrib["cx"]) for dot in chart.iter("circle")]
    assert len(set(places)) == 6
    assert [places[2] - places[0], places[4] - places[2]] == pytest.approx([7, 7])
    assert min(places) > charts.LEFT
    assert max(places) < charts.WIDTH - charts.RIGHT


# ------------------------------------------------------------------------------------------------------- sheets


def spots(*places: tuple[float, float]) -> list[charts.Spot]:
    return [charts.Spot(str(i), Estimate(x, x, x), Estimate(y, y, y)) for i, (x, y) in enumerate(places)]


def test_paths_share_their_axes() -> None:
    """The first from (0, 0) to (1, 1), the second from (0, 0) to (2, 1): half as steep."""
    routes = [charts.Route("a", spots((0, 0), (1, 1))), charts.Route("b", spots((0, 0), (2, 1)), 2, 1)]
    chart = parsed(charts.paths(routes, title="t", x_name="x", y_name="y", show=str))
    ends = [[tuple(map(float, p.split(","))) for p in line.attrib["points"].split()] for line in chart.iter("polyline")]
    (start, one), (other_start, other) = ends
    assert start == other_start
    assert one[1] == other[1]
    assert 2 * (one[0] - start[0]) == pytest.approx(other[0] - start[0], abs=0.3)
    assert len(list(chart.iter("circle"))) == 2
    assert len(list(chart.iter("polygon"))) == 2
    assert [t.text for t in chart.iter("title")][1] == "a, 1: x: 1 (1 to 1); y: 1 (1 to 1)"
    assert charts.paths([charts.Route("none", [])], title="t", x_name="x", y_name="y", show=str) == ""


def test_looks_are_told_apart_without_colours() -> None:
    dressed = [charts.dress(place) for place in range(24)]
    assert len(set(dressed)) == 24
    assert len({look for _, look in dressed[:6]}) == 6
    series = [Series(str(look), [Point(0, 1.0)], 1, look=look) for look in range(6)]
    chart = parsed(charts.lines(series, title="t", x_name="x"))
    marks = [mark for mark in chart.findall("g/*") if mark.tag != "title"]
    shapes = [(mark.tag, len(mark.attrib.get("points", "").split())) for mark in marks]
    assert shapes == [("circle", 0), ("polygon", 4), ("polygon", 3), ("polygon", 4), ("polygon", 3), ("polygon", 12)]
    dashes = [line.attrib.get("stroke-dasharray") for line in chart.iter("polyline")]
    assert len(set(dashes)) == 6
    assert dashes[0] is None


@pytest.mark.parametrize(("columns", "wide"), [(1, 1), (2, 2), (9, 3)])
def test_a_sheet_is_a_file_with_captions_and_a_legend(columns: int, wide: int) -> None:
    chart = charts.lines([Series("s", [Point(0, 1.0)])], title="t", x_name="x")
    drawn = parsed(charts.sheet([(f"<{i}>", chart) for i in range(3)], ["one & two", "three"], columns=columns))
    assert drawn.tag == f"{SVG}svg"
    inner = [(float(e.attrib["x"]), float(e.attrib["y"])) for e in drawn.findall(f"{SVG}svg")]
    assert len({x for x, _ in inner}) == wide
    assert len({y for _, y in inner}) == -(-3 // wide)
    assert len(set(inner)) == 3
    assert float(drawn.attrib["width"]) == wide * (charts.WIDTH + 20) - 20
    assert max(y for _, y in inner) + charts.HEIGHT < float(drawn.attrib["height"])
    texts = {e.attrib["class"]: e.text for e in reversed(drawn.findall(f"{SVG}text"))}
    assert texts["caption"] == "<0>"
    assert [e.text for e in drawn.findall(f"{SVG}g/{SVG}text")] == ["one & two", "three"]
    assert charts.sheet([("nothing", charts.lines([], title="t", x_name="x"))]) == ""
