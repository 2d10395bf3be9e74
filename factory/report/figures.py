"""The charts of a report: one for each held-out measure over the rounds, judges, trade-offs, lengths, training.

A figure is a chart with its name, what to see in it, and a legend; what was not measured has none. All from a
`RunReport`; the drawing itself is in `factory/report/charts.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from factory.faults import FactoryError
from factory.report import RoundView, RunReport, charts, estimate_of
from factory.report.charts import Heat, Point, Series, Spot, lines, points
from factory.schema import Estimate, Judged, PolicyReport

if TYPE_CHECKING:
    from markupsafe import Markup

Show = Callable[[float], str]
Get = Callable[[PolicyReport], Estimate | float | None]


class Figure(NamedTuple):
    """A chart with its name, what to see in it, and its legend: (name, tone)."""

    name: str
    says: str
    chart: Markup
    legend: list[tuple[str, int]]


def number(value: float) -> str:
    """Three significant figures, without an exponent where a reader can do without."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def whole_percent(value: float) -> str:
    """39%"""
    return f"{100 * value:.0f}%"


def _drawn(figures: Iterable[Figure | None]) -> list[Figure]:
    return [figure for figure in figures if figure is not None and figure.chart]


# ---------------------------------------------------------------------------------------- measures over the rounds


class _Measure(NamedTuple):
    """Lines of one chart: (name, how to read it from a report)."""

    title: str
    says: str
    lines: list[tuple[str, Get]]
    show: Show = number


def _field(name: str) -> Get:
    return lambda report: getattr(report, name)


def _measures(reports: Sequence[PolicyReport]) -> list[_Measure]:
    """What there is to draw, the measures that decide first."""
    scored = _scored(reports)
    return [
        _Measure("Held-out pass rate", "Answers that meet every constraint.", [("passed", _field("pass_rate"))],
                 whole_percent),
        _Measure(
            "Gain since the start", "In pass rate; and with bounds that hold at all rounds' looks together.",
            [("alone", _field("gain")), ("at every look", _field("gain_anytime"))], whole_percent,
        ),
        _Measure(
            "Win rate against the start", "By constraints met, ties half; and as it would be at equal lengths.",
            [("wins", _field("win_rate")), ("at equal lengths", _field("length_controlled"))], whole_percent,
        ),
        *_by_judges(reports),
        _Measure(
            "KL from the start", _about_kl(reports, scored),
            [("k1", _field("kl_sequence")), ("k3", _field("kl3_sequence"))],
        ),
        _Measure("Length", "Mean tokens of an answer. No judge but words rewards it by itself.",
                 [("tokens", _field("tokens"))]),
        _Measure("Relevance", f"Nats a token that the prompt explains{scored}. Never rewarded.",
                 [("relevance", _field("relevance"))]),
        _Measure(
            "Distinct words", "Distinct words, word pairs and triples, samples of equal size. Never rewarded.",
            [(f"distinct-{n}", _field(f"distinct_{n}")) for n in (1, 2, 3)],
        ),
        _Measure("Self-BLEU", "How much an answer repeats the others. Never rewarded.",
                 [("BLEU", _field("self_bleu"))]),
        _Measure("Entropy", "Nats a token of the policy's answers. Falling: it grows sure, or collapses.",
                 [("entropy", _field("entropy"))]),
        _of_mapping("Broken answers", "Shares: empty, loops, copies of the prompt, refusals.", "broken", reports,
                    whole_percent),
        _Measure(
            "Implicit reward", "Of held-out pairs: the share that the policy's own reward orders as the judges did.",
            [("accuracy", lambda report: report.implicit.get("accuracy"))], whole_percent,
        ),
        _of_mapping("Implicit margins", "Nats, on held-out pairs: the margin and what became of either side.",
                    "implicit", reports, number, without=("accuracy",)),
    ]  # fmt: skip


def _about_kl(reports: Sequence[PolicyReport], scored: str) -> str:
    """What KL was measured on: of tempered answers it is a mean log-ratio, which may fall below zero."""
    if reports and reports[-1].kl_on == "policy":
        return f"Nats a sequence, on the policy's own answers{scored}."
    return f"Mean log-ratio in nats a sequence, on answers as they were sampled{scored}: an index of the distance."


def _by_judges(reports: Sequence[PolicyReport]) -> list[_Measure]:
    """Win rates and scores by judges beside the verifier; those that labelled are named so."""
    judges = {judge.judge: judge for report in reports for judge in report.judged}

    def of(name: str, what: str) -> Get:
        return lambda report: next((getattr(j, what) for j in report.judged if j.judge == name), None)

    said = [(f"{name}{_role(judge)}", name) for name, judge in sorted(judges.items())]
    return [
        _Measure(
            "Win rate by judges", "Against the start policy, ties half. One that labelled is no proof.",
            [(label, of(name, "win_rate")) for label, name in said], whole_percent,
        ),
        _Measure(
            "Win rate at equal lengths", "The same as it would be if answers were as long as the start policy's.",
            [(label, of(name, "length_controlled")) for label, name in said], whole_percent,
        ),
        _Measure("Scores by judges", "Mean score of held-out answers.",
                 [(label, of(name, "score")) for label, name in said]),
    ]  # fmt: skip


def _role(judge: Judged) -> str:
    return "" if judge.independent is None else " (independent)" if judge.independent else " (labelled)"


def _of_mapping(
    title: str, says: str, field: str, reports: Sequence[PolicyReport], show: Show, without: Sequence[str] = ()
) -> _Measure:
    names = list(dict.fromkeys(name for report in reports for name in getattr(report, field) if name not in without))

    def of(name: str) -> Get:
        return lambda report: getattr(report, field).get(name)

    return _Measure(title, says, [(name.replace("_", " "), of(name)) for name in names], show)


def measured_figures(report: RunReport) -> list[Figure]:
    """One chart for each held-out measure over the rounds, with 95% intervals."""
    measured = [view for view in report.rounds if view.report is not None]
    return _drawn(
        _over_rounds(measure, measured) for measure in _measures([view.report for view in measured if view.report])
    )


def sheet_of_measures(report: RunReport) -> Markup:
    """All of them as one picture that stands by itself, an SVG file; FactoryError where nothing was measured yet."""
    panels = [(_caption(figure), figure.chart) for figure in measured_figures(report)]
    if not panels:
        raise FactoryError(
            f"run {report.run!r} has nothing to draw yet: no round was evaluated", todo="see `factory status`"
        )
    return charts.sheet(panels)


def _caption(figure: Figure) -> Markup:
    """The name, and those of several lines in their colours."""
    from markupsafe import Markup

    named = figure.legend if len(figure.legend) > 1 else []
    line = Markup('<tspan fill="{}" dx="8">{}</tspan>')
    return Markup("{}{}").format(
        figure.name, Markup().join(line.format(charts.COLOURS[tone - 1], name) for name, tone in named)
    )


def _over_rounds(measure: _Measure, views: Sequence[RoundView]) -> Figure:
    curves = []
    for name, get in measure.lines:
        values = points((float(view.round), get(view.report)) for view in views if view.report)
        if values:
            curves.append((name, values))
    series = [Series(name, values, 1 + i % len(charts.COLOURS)) for i, (name, values) in enumerate(curves)]
    chart = lines(series, title=measure.title, x_name="round", show=measure.show, whole_x=True, zero=True)
    legend = [(one.name, one.tone) for one in series] if len(series) > 1 else []
    return Figure(measure.title, measure.says, chart, legend)


def _scored(reports: Sequence[PolicyReport]) -> str:
    """How many answers were read for it, where not all were."""
    counts = [(report.scored, report.answers) for report in reports]
    return f" ({counts[-1][0]} of {counts[-1][1]})" if counts and 0 < counts[-1][0] < counts[-1][1] else ""


# ------------------------------------------------------------------------------------------------- gain against cost


def trade_figures(report: RunReport) -> list[Figure]:
    """What was gained against how far the policy moved: pass rate, win rate, and each judge's, against KL."""
    measured = [view for view in report.rounds if view.report is not None and view.report.kl_sequence is not None]
    wanted: list[tuple[str, str, Get, float | None]] = [
        ("Pass rate against KL", "pass rate", _field("pass_rate"), None),
        ("Win rate against KL", "win rate", _field("win_rate"), 0.5),
    ]
    names = sorted({judge.judge for view in measured if view.report for judge in view.report.judged})
    wanted += [(f"Win rate by {name} against KL", "win rate", _won(name), 0.5) for name in names]
    return _drawn(_trade(*one, measured) for one in wanted)


def _won(name: str) -> Get:
    return lambda report: next((judge.win_rate for judge in report.judged if judge.judge == name), None)


def _trade(title: str, y_name: str, get: Get, rule: float | None, views: Sequence[RoundView]) -> Figure | None:
    spots = []
    for view in views:
        value = get(view.report) if view.report else None
        if view.report and view.report.kl_sequence is not None and isinstance(value, Estimate):
            spots.append(Spot(str(view.round), view.report.kl_sequence, value))
    if len(spots) < 2:
        return None
    chart = charts.path(spots, title=title, x_name="KL, nats a sequence", y_name=y_name, show=whole_percent, rule=rule)
    return Figure(title, "Each round, by its number; up is better, to the right is further from the start.", chart, [])


# ------------------------------------------------------------------------------------------------------------ lengths


def length_figures(report: RunReport) -> list[Figure]:
    """Histograms of lengths: held-out answers of start, champion and last round; chosen against rejected."""
    heldout, last = report.lengths.heldout, max(report.lengths.heldout, default=0)
    shown = dict.fromkeys((0, report.champion, last))
    tones = dict(zip(shown, (3, 1, 2), strict=False))
    samples = [(_policy(n), list(map(float, heldout[n])), tones[n]) for n in shown if heldout.get(n)]
    sides = [("chosen", report.lengths.chosen, 1), ("rejected", report.lengths.rejected, 2)]
    pairs = [(name, list(map(float, values)), tone) for name, values, tone in sides]
    return _drawn([
        _lengths("Held-out answers", "Tokens of an answer; ticks below the axis are the means.", samples),
        _lengths("Chosen and rejected", "Tokens of the answers of preferences. Apart: length was labelled.", pairs),
    ])  # fmt: skip


def _policy(number: int) -> str:
    return f"round {number}" if number else "start"


def _lengths(title: str, says: str, samples: Sequence[tuple[str, Sequence[float], int]]) -> Figure:
    chart = charts.histogram(samples, title=title, x_name="tokens")
    return Figure(title, says, chart, [(name, tone) for name, values, tone in samples if values])


# ------------------------------------------------------------------------------------------------------------- judges

BIASES = [
    ("first shown wins", "first_position"),
    ("longer wins", "longer_wins"),
    ("more lists win", "lists_win"),
    ("more bold wins", "bold_wins"),
    ("more headings win", "headings_win"),
    ("own answers win", "own_wins"),
    ("changed by order", "flip_rate"),
]


def bias_figures(panel: Mapping[str, Any]) -> list[Figure]:
    """For each judge: what wins with it. Sound for the order of showing is one half, for flips none."""
    found = []
    for judge in panel.get("judges") or []:
        values = [(name, estimate_of(judge.get(key)), 0.0 if key == "flip_rate" else 0.5) for name, key in BIASES]
        name = str(judge.get("judge"))
        chart = charts.bars(values, title=f"Habits of {name}", show=whole_percent)
        found.append(Figure(name, "Shares of decided pairs that differ in it, with 95% intervals.", chart, []))
    return _drawn(found)


def agreement_figures(panel: Mapping[str, Any]) -> list[Figure]:
    """Heat maps of every two judges: the same verdict, and kappa."""
    names = sorted({str(pair[side]) for pair in panel.get("pairs") or [] for side in ("judge", "other")})
    between = {frozenset((str(p["judge"]), str(p["other"]))): p for p in panel.get("pairs") or []}

    def of(title: str, says: str, key: str, show: Show) -> Figure:
        cells = [[_square(between, a, b, key, show) for b in names] for a in names]
        return Figure(title, says, charts.heat(names, cells, title=title), [])

    return _drawn([
        of("Same verdict", "Share of pairs that both judged of which they said the same: a, b or tie.", "percent",
           whole_percent),
        of("Cohen's κ", "Agreement beyond chance: 0 is chance, 1 is perfect; the tint is the value.", "cohen_kappa",
           "{:.2f}".format),
    ])  # fmt: skip


def _square(between: Mapping[frozenset[str], Any], a: str, b: str, key: str, show: Show) -> Heat | None:
    if a == b:
        return Heat(None, "", a)
    pair = between.get(frozenset((a, b)))
    if pair is None:
        return None
    value = estimate_of(pair.get(key))
    if value is None:
        return Heat(None, "–", f"{a} and {b}: not known, {pair.get('pairs', 0)} pairs")
    says = charts.tell(f"{a} and {b}, {pair.get('pairs', 0)} pairs", Point(0.0, *value), show)
    return Heat(value.value, show(value.value), says)


# ----------------------------------------------------------------------------------------------------------- training


def training_figures(report: RunReport) -> list[Figure]:
    """Margins, accuracies and both log-probabilities over the steps of all rounds; dashed rules part the rounds."""
    trained = [view for view in report.rounds if view.metrics]
    breaks, at = [], 0
    for view in trained[:-1]:
        at += len(view.metrics)
        breaks.append(at + 0.5)

    def of(title: str, says: str, *wanted: tuple[str, str, int], zero: bool = False) -> Figure:
        series = [Series(name, _curve(trained, key), tone, marks=False) for name, key, tone in wanted]
        chart = lines(series, title=title, x_name="step", zero=zero, breaks=breaks)
        return Figure(title, says, chart, [(name, tone) for name, _, tone in wanted] if len(wanted) > 1 else [])

    return _drawn([
        of("Reward margin", "Implicit reward of chosen minus rejected.", ("margin", "rewards/margins", 1), zero=True),
        of("Accuracy", "Pairs of a batch with a margin above zero.", ("accuracy", "rewards/accuracies", 1)),
        of(
            "Log-probabilities",
            "Nats an answer. When both fall, the margin hides that good answers become rarer too.",
            ("chosen", "logps/chosen", 1),
            ("rejected", "logps/rejected", 2),
        ),
        of(
            "Against the reference",
            "The same as log-ratios to the reference, nats an answer: what the training itself changed.",
            ("chosen", "logratios/chosen", 1),
            ("rejected", "logratios/rejected", 2),
            zero=True,
        ),
        of("Reward", "Mean reward of the policy's own answers, where it is trained on them.", ("reward", "reward", 1)),
        of("Loss", "Of the batch, a mean over its rows.", ("loss", "loss", 1)),
    ])  # fmt: skip


def _curve(trained: Sequence[RoundView], key: str) -> list[Point]:
    values = (row.get(key) for view in trained for row in view.metrics)
    found = ((float(i), value) for i, value in enumerate(values, 1) if isinstance(value, int | float))
    return points((at, value) for at, value in found if math.isfinite(value))


# ---------------------------------------------------------------------------------------------------------- best of n


def study_figures(studies: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """Best-of-n studies, as `best_of_n.Study.to_json` gives them: what the judge that picks says, what others see, and
    how many picks pass, against log2 of n."""
    return _drawn(figure for study in studies for figure in _study(study))


def _study(study: Mapping[str, Any]) -> Iterable[Figure]:
    sizes, judge = study.get("sizes") or [], str(study.get("judge"))
    where = f"round {study['round']}, " if "round" in study else ""
    begins = {str(h["measure"]): h["begins"] for h in study.get("hacking") or [] if h.get("begins")}
    about = f"{where}{study.get('prompts', 0):,} prompts"

    def over(name: str, values: Iterable[Any], tone: int) -> Series:
        estimates = (value if isinstance(value, int | float) else estimate_of(value) for value in values)
        at = (math.log2(size["n"]) for size in sizes)
        return Series(name, points(zip(at, estimates, strict=True)), tone)

    def of(title: str, says: str, *series: Series) -> Figure:
        legend = [(one.name, one.tone) for one in series] if len(series) > 1 else []
        return Figure(title, says, lines(series, title=title, x_name="log2 of n"), legend)

    yield of(f"{judge}, which picks", f"Its own score of the pick; {about}.", over(judge, _of(sizes, "score"), 1))
    for name in sizes[0].get("qualities") or {} if sizes else ():
        falls = f"Falls from n = {begins[name]}: there the judge is fooled." if name in begins else "It picks nothing."
        yield of(f"{name} of what {judge} picks", falls, over(name, (s["qualities"].get(name) for s in sizes), 2))
    yield of(
        f"Passes of what {judge} picks",
        "The pick passes; any of the n passes; and 1 - (1 - p)^n, as if all prompts were equally hard.",
        over("the pick", _of(sizes, "passed"), 1),
        over("any of n", _of(sizes, "any_passed"), 2),
        over("if alike", _of(sizes, "if_alike"), 3),
    )
    yield of(
        f"KL of what {judge} picks",
        "Nats from the policy: by the scores seen, by the estimator of 2401.01879, and the bound log n - (n-1)/n.",
        over("by levels", _of(sizes, "kl_levels"), 1),
        over("2401.01879", _of(sizes, "kl_estimate"), 2),
        over("bound", _of(sizes, "kl_bound"), 3),
    )


def _of(sizes: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    return [size.get(name) for size in sizes]


# ------------------------------------------------------------------------------------------------------------- slices


def slice_figures(report: RunReport) -> list[Figure]:
    """Pass rates of the parts of the prompts, start against champion: by kind of constraint, then as they were cut."""
    start, best = report.start, report.best
    if start is None or best is None:
        return []
    champion = report.champion != 0
    policies = [start, best] if champion else [start]
    names = [("start", 3), (f"round {report.champion}", 1)][: len(policies)]
    found = [
        _parts("Constraints met by kind", [policy.by_constraint for policy in policies], names),
    ]
    for by in dict.fromkeys(part.by for policy in policies for part in policy.slices):
        rates = [{p.name: p.pass_rate for p in policy.slices if p.by == by and p.pass_rate} for policy in policies]
        found.append(_parts(f"By {by.replace('_', ' ')}", rates, names))
    return _drawn(found)


def _parts(title: str, rates: Sequence[Mapping[str, Estimate]], names: list[tuple[str, int]]) -> Figure:
    groups = [
        (kind.replace("_", " "), [charts.point(0.0, policy.get(kind)) for policy in rates])
        for kind in dict.fromkeys(kind for policy in rates for kind in policy)
    ]
    chart = charts.rows(groups, names, title=title, show=whole_percent)
    return Figure(title, "Held-out answers, with 95% intervals.", chart, names)
