"""A run's report as one HTML file: tables, charts and texts put into templates/report.html.j2.

Everything that came from a model or a user goes through the template's autoescape; there is no script, and a content
security policy forbids the page to load anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from factory import charts
from factory.charts import Point, Series, lines, points
from factory.console import span
from factory.report import (
    CUT,
    RoundView,
    RunReport,
    command_line,
    percent,
    points as in_points,
    queries,
    story,
)
from factory.schema import Estimate, Messages, PolicyReport, Preference

if TYPE_CHECKING:
    import jinja2
    from markupsafe import Markup


class Cell(NamedTuple):
    """What stands in a table: a value and, smaller, its interval."""

    main: str
    sub: str = ""


class Table(NamedTuple):
    """Heads with what they mean, and rows of cells; `marked` is the row to point out."""

    heads: list[tuple[str, str]]
    rows: list[list[Cell]]
    marked: int = -1


class Figure(NamedTuple):
    """A chart with its name, what to see in it, and its legend: (name, tone)."""

    name: str
    says: str
    chart: Markup
    legend: list[tuple[str, int]]


Show = Callable[[float], str]


def render(report: RunReport) -> str:
    """The whole page. The same report gives the same bytes."""
    return _template().render(
        report=report,
        begun=begun(report),
        story=story(report),
        tiles=tiles(report),
        rounds=measured_table(report),
        made=made_table(report),
        measured=measured_figures(report),
        trained=training_figures(report),
        kinds=kind_figure(report),
        judges=judge_table(report),
        agreement=agreement_table(report),
        pairs=[pair_view(pair) for pair in report.pairs],
        decisions=[(view.round, view.decision, span(view.seconds), view.notes) for view in report.rounds],
        facts=facts(report),
        queries=[(what, command_line(sql)) for what, sql in queries(report.run)],
    )


@cache
def _template() -> jinja2.Template:
    import jinja2

    folder = Path(__file__).parent / "templates"
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")


# ------------------------------------------------------------------------------------------------------------- cells


def number(value: float) -> str:
    """Three significant figures, without an exponent where a reader can do without."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def bare(show: Show) -> Show:
    """The same without its unit, for the ends of an interval: 24.5% becomes 24.5."""
    return lambda value: show(value).removesuffix("%").removesuffix(" points")


def cell(value: Estimate | float | None, show: Show = number) -> Cell:
    """A value with its interval; a dash where it was not measured."""
    if value is None:
        return Cell("–")
    if not isinstance(value, Estimate):
        return Cell(show(value)) if math.isfinite(value) else Cell("–")
    if math.isnan(value.value):
        return Cell("–")
    known = math.isfinite(value.low) and math.isfinite(value.high) and value.low < value.high
    end = bare(show)
    return Cell(show(value.value), f"{end(value.low)} to {end(value.high)}" if known else "")


def signed(value: float) -> str:
    """+3.1, -0.4"""
    return f"{value:+.3g}"


def tiles(report: RunReport) -> list[tuple[str, str, str]]:
    """The headline numbers: name, value, interval or context."""
    found = []
    final, best, start = report.final, report.best, report.start
    if final and final.gain:
        shown = cell(final.gain, in_points)
        found.append(("gain on final prompts", shown.main, f"{shown.sub}; {final.prompts:,} prompts"))
    if report.champion and best and best.pass_rate:
        shown = cell(best.pass_rate, percent)
        found.append(("champion, held out", shown.main, f"{shown.sub}; {best.prompts:,} prompts"))
    if start and start.pass_rate:
        shown = cell(start.pass_rate, percent)
        found.append(("start, held out", shown.main, f"{shown.sub}; {start.prompts:,} prompts"))
    if best and best.kl_sequence and report.champion:
        shown = cell(best.kl_sequence)
        found.append(("KL from the start", f"{shown.main} nats", f"{shown.sub} a sequence"))
    found.append(("rounds", str(max(len(report.rounds) - 1, 0)), span(sum(v.seconds for v in report.rounds))))
    return found


# ------------------------------------------------------------------------------------------------------------ tables

_MEASURED: list[tuple[str, str, str, Show]] = [
    ("pass rate", "pass_rate", "held-out answers that meet every constraint of their prompt", percent),
    ("gain", "gain", "pass rate minus the start policy's on the same prompts, paired", in_points),
    (
        "win rate",
        "win_rate",
        "answers that meet more than the start policy's to the same prompt; ties count half",
        percent,
    ),
    (
        "KL",
        "kl_sequence",
        "from the start policy, nats a sequence: mean log-ratio on the policy's own answers as they were sampled "
        "(with a temperature below 1 or a top-p cut, an index of the distance and no exact KL)",
        number,
    ),
    ("tokens", "tokens", "mean length of an answer; never rewarded by itself", number),
    (
        "relevance",
        "relevance",
        "nats a token of the answer that the prompt explains, by the start model; never rewarded",
        number,
    ),
    ("distinct-2", "distinct_2", "distinct word pairs in samples of equal size; never rewarded", number),
]


def measured_table(report: RunReport) -> Table:
    """The rounds as held-out prompts saw them."""
    heads = [("round", "0 is the start policy"), *((name, says) for name, _, says, _ in _MEASURED)]
    cells = [
        [Cell(str(view.round)), *(cell(getattr(view.report, key, None), show) for _, key, _, show in _MEASURED)]
        for view in report.rounds
    ]
    return Table(heads, cells, _marked(report, report.rounds))


_MADE = [
    ("round", ""),
    ("preferences", "pairs that the round trained on"),
    ("judges agree", "pairs of which the first two judges said the same"),
    ("margin", "rewards/margins: implicit reward of chosen minus rejected, mean of the last quarter of the steps"),
    ("accuracy", "rewards/accuracies: pairs with a margin above zero, same steps"),
    ("Δ log p chosen", "change of the log-probability of chosen answers over the training, nats an answer"),
    ("Δ log p rejected", "the same for rejected answers; both falling is a warning"),
    ("time", "wall clock of the round"),
]


def made_table(report: RunReport) -> Table:
    """What each round made and how it was trained."""
    views = [view for view in report.rounds if view.round > 0]
    return Table(_MADE, [_made_cells(view) for view in views], _marked(report, views))


def _made_cells(view: RoundView) -> list[Cell]:
    training = view.training
    between = (view.agreement.get("pairs") or [{}])[0]
    return [
        Cell(str(view.round)),
        cell(view.preferences),
        cell(_estimate(between.get("percent")), percent),
        cell(training and training.margin),
        cell(training and training.accuracy, percent),
        cell(training and training.chosen, signed),
        cell(training and training.rejected, signed),
        Cell(span(view.seconds)),
    ]


def _marked(report: RunReport, views: Sequence[RoundView]) -> int:
    return next((i for i, view in enumerate(views) if view.round == report.champion), -1)


def _estimate(value: Any) -> Estimate | None:
    """An estimate as it is kept in JSON, [value, low, high] with null for NaN."""
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 3 or value[0] is None:
        return None
    return Estimate(*(math.nan if bound is None else float(bound) for bound in value))


_JUDGE_COLUMNS: list[tuple[str, str, str, Show]] = [
    ("judgments", "judgments", "rows kept, canaries left out", number),
    ("failures", "failure_rate", "judgments without a usable verdict", percent),
    ("verdicts", "verdicts", "pairs decided or tied", number),
    ("ties", "tie_rate", "of its verdicts", percent),
    ("flips", "flip_rate", "verdicts that changed when the answers were shown in the other order", percent),
    ("first shown wins", "first_position", "sound is 50%", percent),
    ("longer wins", "longer_wins", "decided pairs that went to the longer answer", percent),
    ("fooled", "fooled_rate", "canaries (answers that say nothing) preferred to a real one", percent),
]


def judge_table(report: RunReport) -> Table:
    """Every judge of every round."""
    heads = [("round", ""), ("judge", ""), *((name, says) for name, _, says, _ in _JUDGE_COLUMNS)]
    return Table(heads, [_judge_cells(n, judge) for n, judge in _judges(report, "judges")])


def _judges(report: RunReport, part: str) -> Iterable[tuple[int, Mapping[str, Any]]]:
    for view in report.rounds:
        for item in view.agreement.get(part) or []:
            yield view.round, item


def _judge_cells(round_: int, judge: Mapping[str, Any]) -> list[Cell]:
    cells = [Cell(str(round_)), Cell(str(judge.get("judge")), str(judge.get("kind") or ""))]
    return cells + [_kept(judge.get(key), show) for _, key, _, show in _JUDGE_COLUMNS]


def _kept(value: Any, show: Show) -> Cell:
    return cell(value if isinstance(value, int | float) else _estimate(value), show)


def agreement_table(report: RunReport) -> Table:
    """Every two judges of every round."""
    heads = [
        ("round", ""),
        ("judges", ""),
        ("pairs", "that both judged"),
        ("agree", "said the same: a, b or tie"),
        ("Cohen's κ", "agreement beyond chance; 0 is chance, 1 is perfect"),
        ("Krippendorff's α", "the same idea for any number of judges"),
    ]
    return Table(heads, [_agreement_cells(n, pair) for n, pair in _judges(report, "pairs")])


def _agreement_cells(round_: int, pair: Mapping[str, Any]) -> list[Cell]:
    return [
        Cell(str(round_)),
        Cell(f"{pair.get('judge')} / {pair.get('other')}"),
        _kept(pair.get("pairs"), number),
        _kept(pair.get("percent"), percent),
        _kept(pair.get("cohen_kappa"), number),
        _kept(pair.get("krippendorff_alpha"), number),
    ]


# ------------------------------------------------------------------------------------------------------------ charts


def measured_figures(report: RunReport) -> list[Figure]:
    """One chart for each held-out measure over the rounds."""

    def of(name: str, label: str, says: str, show: Show = number, *, zero: bool = True) -> Figure:
        values = points((float(v.round), getattr(v.report, name)) for v in report.rounds if v.report)
        chart = lines([Series(label, values)], title=label, x_name="round", show=show, whole_x=True, zero=zero)
        return Figure(label, says, chart, [])

    figures = [
        of(
            "pass_rate", "Held-out pass rate", "Answers that meet every constraint, with 95% intervals.", _whole_percent
        ),
        of("kl_sequence", "KL from the start", f"Nats a sequence, on the policy's own answers{_scored(report)}."),
        of("tokens", "Length", "Mean tokens of an answer. Never rewarded by itself."),
        of("relevance", "Relevance", f"Nats a token that the prompt explains{_scored(report)}. Never rewarded."),
        of("distinct_2", "Distinct-2", "Distinct word pairs, samples of equal size. Never rewarded."),
    ]
    return [figure for figure in figures if figure.chart]


def _scored(report: RunReport) -> str:
    """How many answers were read for it, where not all were."""
    counts = [(view.report.scored, view.report.answers) for view in report.rounds if view.report]
    return f" ({counts[-1][0]} of {counts[-1][1]})" if counts and counts[-1][0] < counts[-1][1] else ""


def _whole_percent(value: float) -> str:
    return f"{100 * value:.0f}%"


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

    figures = [
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
    ]
    return [figure for figure in figures if figure.chart]


def _curve(trained: Sequence[RoundView], key: str) -> list[Point]:
    values = (row.get(key) for view in trained for row in view.metrics)
    return points((float(i), value) for i, value in enumerate(values, 1) if isinstance(value, int | float))


def kind_figure(report: RunReport) -> Figure | None:
    """Pass rate by kind of constraint, start against champion."""
    start, best = report.start, report.best
    if start is None or best is None or not start.by_constraint:
        return None
    champion = report.champion != 0
    shown: list[PolicyReport] = [start, best] if champion else [start]
    names = [("start", 3), (f"round {report.champion}", 1)][: len(shown)]
    groups = [
        (kind.replace("_", " "), [charts.point(0.0, policy.by_constraint.get(kind)) for policy in shown])
        for kind in start.by_constraint
    ]
    chart = charts.rows(groups, names, title="Constraints met by kind", show=_whole_percent)
    return Figure("Constraints met by kind", "Held-out answers, with 95% intervals.", chart, names)


# ------------------------------------------------------------------------------------------------- texts and facts


class PairView(NamedTuple):
    """A preference to read."""

    round: int
    turns: list[tuple[str, str]]
    chosen: str
    rejected: str
    margin: str
    agreement: str


def pair_view(pair: Preference) -> PairView:
    """The pair as texts, cut where they are long."""
    agreed = "" if pair.agreement is None else f"{_whole_percent(pair.agreement)} of {pair.judges} judges"
    turns = [(turn["role"], shown(turn["content"])) for turn in pair.prompt]
    return PairView(pair.round, turns, said(pair.chosen), said(pair.rejected), number(pair.margin), agreed)


def said(turns: Messages) -> str:
    """The answer of an assistant's turn."""
    return shown("\n\n".join(turn["content"] for turn in turns))


_VISIBLE = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"} | {127: "\u2421"}


def visible(value: Any) -> Any:
    """What the template prints, before it is escaped: control characters made visible, lone surrogates replaced."""
    if type(value) is not str:  # Markup, numbers
        return value
    return value.translate(_VISIBLE).encode("utf-8", "replace").decode("utf-8")


def shown(text: str) -> str:
    """A text as the page shows it: the tail of a long one left out and counted."""
    left = len(text) - CUT
    return text if left <= 0 else f"{text[:CUT]} … ({left:,} more characters)"


def begun(report: RunReport) -> str:
    """When the run was begun, UTC; empty when that is not known."""
    at = report.provenance.get("begun")
    return f"{at:%Y-%m-%d %H:%M}" if at else ""


def facts(report: RunReport) -> list[tuple[str, str]]:
    """Where the numbers come from: counts, models with their hashes, versions, time by stage."""
    known = report.provenance
    found = [("prompts", ", ".join(f"{n:,} {split}" for split, n in (known.get("prompts") or {}).items()))]
    found += [(name, f"{known[name]:,}") for name in ("answers", "failed answers", "answer tokens") if name in known]
    for round_, split, model, model_hash in known.get("models") or ():
        found.append((f"round {round_}, {split}", f"{model} ({model_hash[:12]})" if model_hash else model))
    stages: dict[str, float] = {}
    for view in report.rounds:
        for stage, seconds in view.stages.items():
            stages[stage] = stages.get(stage, 0.0) + seconds
    found += [("time by stage", ", ".join(f"{stage} {span(seconds)}" for stage, seconds in stages.items()))]
    found += [("versions", ", ".join(f"{name} {version}" for name, version in known.get("versions", {}).items()))]
    return [(name, value) for name, value in found if value]
