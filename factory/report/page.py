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

from factory.console import span
from factory.report import PairToRead, RoundView, RunReport, Vote, estimate_of, figures, name_of_model
from factory.report.figures import number, whole_percent
from factory.report.story import command_line, dollars, percent, points as in_points, queries, story
from factory.schema import Estimate, Messages

if TYPE_CHECKING:
    import jinja2

CUT = 1600
"""Characters of a text that the page shows."""


class Cell(NamedTuple):
    """What stands in a table: a value and, smaller, its interval."""

    main: str
    sub: str = ""


class Table(NamedTuple):
    """Heads with what they mean, and rows of cells; `marked` is the row to point out."""

    heads: list[tuple[str, str]]
    rows: list[list[Cell]]
    marked: int = -1


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
        measured=figures.measured_figures(report),
        trade=figures.trade_figures(report),
        slices=figures.slice_figures(report),
        lengths=figures.length_figures(report),
        studies=figures.study_figures(report.studies),
        trained=figures.training_figures(report),
        judges=judge_table(report),
        heat=figures.agreement_figures(report.panel),
        habits=figures.bias_figures(report.panel),
        worth=panel_words(report.panel),
        agreement=agreement_table(report),
        pairs=[pair_view(pair) for pair in report.pairs],
        groups=GROUPS,
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


def bare(show: Show) -> Show:
    """The same without its unit, for the ends of an interval: 24.5% becomes 24.5."""
    return lambda value: show(value).removesuffix("%").removesuffix(" points")


UNKNOWN = Cell("–")


def cell(value: Estimate | float | None, show: Show = number) -> Cell:
    """A value with its interval; a dash where it was not measured."""
    if value is None:
        return UNKNOWN
    if not isinstance(value, Estimate):
        return Cell(show(value)) if math.isfinite(value) else UNKNOWN
    if math.isnan(value.value):
        return UNKNOWN
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
    if report.cost:
        found.append(("cost", f"${report.cost:,.2f}", f"{sum(v.tokens for v in report.rounds):,} tokens written"))
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
    ("tokens", "tokens", "mean length of an answer; no judge but words rewards it by itself", number),
    (
        "relevance",
        "relevance",
        "nats a token of the answer that the prompt explains, by the start model; never rewarded",
        number,
    ),
    ("distinct-2", "distinct_2", "distinct word pairs in samples of equal size; never rewarded", number),
]


def measured_table(report: RunReport) -> Table:
    """The rounds as held-out prompts saw them; what was never measured has no column."""
    columns = [_column(report, *measure) for measure in _MEASURED]
    names = dict.fromkeys(judge.judge for view in report.rounds if view.report for judge in view.report.judged)
    columns += [_judge_column(report, name) for name in names]
    kept = [(head, cells) for head, cells in columns if any(one != UNKNOWN for one in cells)]
    heads = [("round", "0 is the start policy"), *(head for head, _ in kept)]
    lines = [[Cell(str(view.round)), *(cells[i] for _, cells in kept)] for i, view in enumerate(report.rounds)]
    return Table(heads, lines, _marked(report, report.rounds))


Column = tuple[tuple[str, str], list["Cell"]]


def _column(report: RunReport, name: str, key: str, says: str, show: Show) -> Column:
    return (name, says), [cell(getattr(view.report, key, None), show) for view in report.rounds]


def _judge_column(report: RunReport, name: str) -> Column:
    """How often a judge beside the verifier prefers a round's answers to the start policy's."""
    rates = [
        next((judge.win_rate for judge in view.report.judged if judge.judge == name), None) if view.report else None
        for view in report.rounds
    ]
    return (f"win rate by {name}", "against the start policy, ties half"), [cell(rate, percent) for rate in rates]


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
        cell(estimate_of(between.get("percent")), percent),
        cell(training and training.margin),
        cell(training and training.accuracy, percent),
        cell(training and training.chosen, signed),
        cell(training and training.rejected, signed),
        Cell(span(view.seconds)),
    ]


def _marked(report: RunReport, views: Sequence[RoundView]) -> int:
    return next((i for i, view in enumerate(views) if view.round == report.champion), -1)


_JUDGE_COLUMNS: list[tuple[str, str, str, Show]] = [
    ("judgments", "judgments", "rows kept, canaries left out", number),
    ("failures", "failure_rate", "judgments without a usable verdict", percent),
    ("verdicts", "verdicts", "pairs decided or tied", number),
    ("ties", "tie_rate", "of its verdicts", percent),
    ("flips", "flip_rate", "verdicts that changed when the answers were shown in the other order", percent),
    ("first shown wins", "first_position", "sound is 50%", percent),
    ("longer wins", "longer_wins", "decided pairs that went to the longer answer", percent),
    (
        "fooled",
        "fooled_rate",
        "canaries (answers that say nothing) preferred to a real one, of those that it did not tie",
        percent,
    ),
]


def judge_table(report: RunReport) -> Table:
    """Every judge, all rounds together; round by round where they are not known together."""
    if report.panel:
        return panel_table(report.panel)
    heads = [("round", ""), ("judge", ""), *((name, says) for name, _, says, _ in _JUDGE_COLUMNS)]
    return Table(heads, [[Cell(str(n)), *_judge_cells(judge)] for n, judge in _judges(report, "judges")])


def panel_table(panel: Mapping[str, Any]) -> Table:
    """Every judge of a panel; what none of them has is no column."""
    judges = panel.get("judges") or []
    lines = [_judge_cells(judge) for judge in judges]
    heads = [("judge", ""), *((name, says) for name, _, says, _ in _JUDGE_COLUMNS)]
    kept = [i for i in range(len(heads)) if any(line[i] != UNKNOWN for line in lines)]
    return Table([heads[i] for i in kept], [[line[i] for i in kept] for line in lines])


def pairs_table(panel: Mapping[str, Any]) -> Table:
    """Every two judges of a panel."""
    return Table(_AGREEMENT[1:], [_agreement_cells(0, pair)[1:] for pair in panel.get("pairs") or []])


def panel_words(panel: Mapping[str, Any]) -> list[str]:
    """What all judges together are worth, and which of them stand in quarantine."""
    found = []
    together = panel.get("panel") or {}
    if together.get("effective"):
        found.append(
            f"Together the {together['judges']} judges are worth {together['effective']:.1f} that err independently."
        )
    for judge in panel.get("judges") or []:
        if judge.get("quarantined"):
            found.append(
                f"{judge['quarantined']:,} judgments of {judge['judge']} do not count: {judge.get('quarantine')}."
            )
    return found


def _judges(report: RunReport, part: str) -> Iterable[tuple[int, Mapping[str, Any]]]:
    for view in report.rounds:
        for item in view.agreement.get(part) or []:
            yield view.round, item


def _judge_cells(judge: Mapping[str, Any]) -> list[Cell]:
    named = Cell(str(judge.get("judge")), name_of_model(str(judge.get("model") or judge.get("kind") or "")))
    return [named, *(_kept(judge.get(key), show) for _, key, _, show in _JUDGE_COLUMNS)]


def _kept(value: Any, show: Show) -> Cell:
    return cell(value if isinstance(value, int | float) else estimate_of(value), show)


_AGREEMENT = [
    ("round", ""),
    ("judges", ""),
    ("pairs", "that both judged"),
    ("agree", "said the same: a, b or tie"),
    ("Cohen's κ", "agreement beyond chance; 0 is chance, 1 is perfect"),
    ("Krippendorff's α", "the same idea for any number of judges"),
]


def agreement_table(report: RunReport) -> Table:
    """Every two judges of every round."""
    return Table(_AGREEMENT, [_agreement_cells(n, pair) for n, pair in _judges(report, "pairs")])


def _agreement_cells(round_: int, pair: Mapping[str, Any]) -> list[Cell]:
    return [
        Cell(str(round_)),
        Cell(f"{pair.get('judge')} / {pair.get('other')}"),
        _kept(pair.get("pairs"), number),
        _kept(pair.get("percent"), percent),
        _kept(pair.get("cohen_kappa"), number),
        _kept(pair.get("krippendorff_alpha"), number),
    ]


# ------------------------------------------------------------------------------------------------- texts and facts


GROUPS = [
    ("certain", "The most certain", "On which the judges agree the most, by the widest margin."),
    ("disputed", "The most disputed", "On which the fewest judges side with the verdict: where labels may be wrong."),
    ("drawn", "Drawn by chance", "By a hash of their keys: nobody picked them."),
]


class PairView(NamedTuple):
    """A preference to read."""

    why: str
    round: int
    turns: list[tuple[str, str]]
    chosen: str
    rejected: str
    margin: str
    agreement: str
    votes: list[str]


def pair_view(shown_pair: PairToRead) -> PairView:
    """The pair as texts, cut where they are long, and what each judge said."""
    pair = shown_pair.pair
    agreed = "" if pair.agreement is None else f"{whole_percent(pair.agreement)} of {pair.judges} judges"
    turns = [(turn["role"], shown(turn["content"])) for turn in pair.prompt]
    votes = [vote_words(vote) for vote in shown_pair.votes]
    sides = said(pair.chosen), said(pair.rejected)
    return PairView(shown_pair.why, pair.round, turns, *sides, number(pair.margin), agreed, votes)


def vote_words(vote: Vote) -> str:
    """verifier: chosen (90%)"""
    return f"{vote.judge}: {vote.says} ({whole_percent(vote.p_chosen)})"


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
    """Where the numbers come from: counts, sources, models with their hashes, seeds, data hashes, versions, cost and
    time."""
    known = report.provenance
    found = [("prompts", ", ".join(f"{n:,} {split}" for split, n in (known.get("prompts") or {}).items()))]
    found += [("sources", ", ".join(f"{name} ({n:,})" for name, n in (known.get("sources") or {}).items()))]
    found += [(name, f"{known[name]:,}") for name in ("answers", "failed answers", "answer tokens") if name in known]
    for round_, split, model, model_hash in known.get("models") or ():
        found.append((f"round {round_}, {split}", f"{model} ({model_hash[:12]})" if model_hash else model))
    found += [(f"data: {name}", value) for name, value in (known.get("hashes") or {}).items()]
    found += [("seed", seed_of_recipe(report.recipe)), ("threads", str(known.get("threads") or ""))]
    found += [("versions", ", ".join(f"{name} {version}" for name, version in known.get("versions", {}).items()))]
    found += [(f"plugin {Path(name).name}", content[:12]) for name, content in known.get("plugins", {}).items()]
    stages: dict[str, float] = {}
    for view in report.rounds:
        for stage, seconds in view.stages.items():
            stages[stage] = stages.get(stage, 0.0) + seconds
    found += [("time by stage", ", ".join(f"{stage} {span(seconds)}" for stage, seconds in stages.items()))]
    read = sum(view.prompt_tokens for view in report.rounds)
    if read:
        written = sum(view.tokens for view in report.rounds)
        found += [("paid for", f"{written:,} tokens written, {read:,} read, {dollars(report.cost)}")]
    return [(name, value) for name, value in found if value]


def seed_of_recipe(recipe: str) -> str:
    """The seed that a recipe's text gives; empty where it gives none."""
    import yaml

    data = yaml.safe_load(recipe) if recipe else None
    return str(data.get("seed", "")) if isinstance(data, dict) else ""
