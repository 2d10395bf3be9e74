"""Agreement: how far judges agree with each other, and how far each can be trusted at all.

`measure` (factory/votes/reliability.py) gives the coefficients of agreement for any table of votes; `aggregate`
(factory/votes/aggregation.py) makes one value of many.
`report` reads a run's judgments: the habits of every judge (factory/trust/habits.py); for every two judges, and for all
together, how far they agree on the pairs that they judged; and a ranking of the models whose answers were compared
(factory/trust/ranking.py). Intervals are 95% and take prompts for independent, not pairs of answers to one prompt:
rates by the number of trials that the prompts are worth, coefficients by the bootstrap over prompts.

The level says what a verdict is: nominal, the words a, tie and b; ordinal, the same in this order; interval, the
probability that a is the better.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, get_args

from factory import verdicts
from factory.console import table
from factory.registry import unknown_name
from factory.schema import Candidate, Estimate, Judgment
from factory.stats import coefficients, intervals
from factory.stats.coefficients import Coefficient, Patterns
from factory.trust.evidence import Evidence, Said, evidence, gather
from factory.trust.habits import JudgeStats, Spent, spending, stats
from factory.trust.ranking import Comparison, Ranking, rank
from factory.votes.aggregation import Votes, aggregate, methods
from factory.votes.reliability import AgreementReport, known, measure, plain

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from factory.store import Store

    Array = NDArray[np.float64]

__all__ = ["AgreementReport", "JudgeStats", "JudgesReport", "aggregate", "between", "measure", "report"]

Level = Literal["nominal", "ordinal", "interval"]
PANEL = "panel"
_WORDS: tuple[Literal["b", "tie", "a"], ...] = ("b", "tie", "a")
_UNKNOWN = Estimate(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class PairStats:
    """How far two judges agree on the pairs of answers that both judged."""

    judge: str
    other: str
    pairs: int
    percent: Estimate  # the same verdict: a, b or tie
    cohen_kappa: Estimate  # squared differences at ordinal and interval level
    krippendorff_alpha: Estimate
    gwet_ac1: Estimate  # of the words
    decided: int  # pairs that neither ties
    same_winner: Estimate  # share of them on which both name the same winner

    def row(self) -> dict[str, Any]:
        """One line of a table; None for what is unknown."""
        return {f.name: known(getattr(self, f.name)) for f in fields(self)}


@dataclass(frozen=True)
class PanelStats:
    """All judges together. `effective`: Kish's number of independent judges that they are worth, from the errors that
    the votes betray (factory/votes/dependence.py); None where judges or pairs are too few to tell."""

    judges: int
    pairs: int  # with two verdicts or more
    krippendorff_alpha: Estimate
    effective: float | None
    notes: tuple[str, ...] = ()

    def row(self) -> dict[str, Any]:
        """One line of a table; None for what is unknown."""
        return {f.name: known(getattr(self, f.name)) for f in fields(self) if f.name != "notes"}


@dataclass(frozen=True)
class JudgesReport:
    """Judges alone, two by two and all together, and the models that they ranked (`ranking`: by judge, and by the
    panel's majority)."""

    judges: list[JudgeStats] = field(default_factory=list)
    pairs: list[PairStats] = field(default_factory=list)
    panel: PanelStats | None = None
    ranking: dict[str, Ranking] = field(default_factory=dict)
    level: Level = "nominal"

    def judge_rows(self) -> list[dict[str, Any]]:
        """One line for each judge, for a table."""
        return [stats.row() for stats in self.judges]

    def pair_rows(self) -> list[dict[str, Any]]:
        """One line for every two judges, for a table."""
        return [stats.row() for stats in self.pairs]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; an estimate is [value, low, high] with null for NaN."""
        return {
            "level": self.level,
            "judges": [_json(stats) for stats in self.judges],
            "pairs": [_json(stats) for stats in self.pairs],
            "panel": None if self.panel is None else _json(self.panel),
            "ranking": {judge: ranking.to_json() for judge, ranking in self.ranking.items()},
        }

    def text(self) -> str:
        """Tables for a reader, one for each thing that is asked of judges."""
        return "\n\n".join(f"{head}\n{body}" for head, body in _blocks(self))


def _json(stats: JudgeStats | PairStats | PanelStats) -> dict[str, Any]:
    return {f.name: plain(getattr(stats, f.name)) for f in fields(stats)}


def report(
    store: Store,
    *,
    run: str,
    round: int | None = None,
    split: str | None = None,
    tie_margin: float = verdicts.TIE_MARGIN,
    keep_quarantined: bool = False,
    level: Level = "nominal",
    prior: float = 0.0,
    seed: int = 0,
) -> JudgesReport:
    """The judges of a run (of one round, of one split), from the judgments kept. FactoryError when there are none."""
    found = gather(
        store, run=run, round=round, split=split, tie_margin=tie_margin, keep_quarantined=keep_quarantined
    )  # fmt: skip
    return of_evidence(found, level=level, prior=prior, seed=seed, spent=spending(store, found))


def between(
    judgments: Iterable[Judgment],
    candidates: Iterable[Candidate],
    tie_margin: float = verdicts.TIE_MARGIN,
    seed: int = 0,
) -> JudgesReport:
    """The same from rows. Pointwise judges are compared on pairs of answers to one prompt, by the sign of the
    difference of their scores, equal scores being a tie."""
    return of_evidence(evidence(judgments, candidates, tie_margin), seed=seed)


def of_evidence(
    found: Evidence,
    *,
    level: Level = "nominal",
    prior: float = 0.0,
    seed: int = 0,
    spent: Mapping[str, Spent] | None = None,
) -> JudgesReport:
    """The same from evidence. FactoryError for an unknown level."""
    if level not in get_args(Level):
        raise unknown_name("level", level, get_args(Level))
    return JudgesReport(
        judges=stats(found, spent),
        pairs=[_agree(found, a, b, level, seed) for a, b in itertools.combinations(found.said, 2)],
        panel=_panel(found, level, seed) if len(found.said) > 1 else None,
        ranking=rankings(found, prior),
        level=level,
    )


# ------------------------------------------------------------------------------------------------- two by two, and all


def _agree(found: Evidence, judge: str, other: str, level: Level, seed: int) -> PairStats:
    """Agreement of two judges on the pairs that both gave a verdict on."""
    said, also = found.said[judge], found.said[other]
    shared = sorted(said.keys() & also.keys())
    prompts = [found.prompt(pair) for pair in shared]
    decided = [pair for pair in shared if "tie" not in (said[pair].verdict, also[pair].verdict)]
    same = [said[pair].verdict == also[pair].verdict for pair in decided]
    measured = _coefficients([[said[pair], also[pair]] for pair in shared], prompts, level, seed)
    return PairStats(
        judge=judge,
        other=other,
        pairs=len(shared),
        percent=intervals.rate([said[pair].verdict == also[pair].verdict for pair in shared], prompts),
        cohen_kappa=measured["kappa"],
        krippendorff_alpha=measured["alpha"],
        gwet_ac1=measured["ac1"],
        decided=len(decided),
        same_winner=intervals.rate(same, [found.prompt(pair) for pair in decided]),
    )


def _coefficients(
    votes: Sequence[Sequence[verdicts.Verdict]], prompts: Sequence[str], level: Level, seed: int
) -> dict[str, Estimate]:
    """Kappa, alpha and AC1 of two judges' verdicts, bootstrapped over prompts."""
    import numpy as np

    if not votes:
        return dict.fromkeys(("kappa", "alpha", "ac1"), _UNKNOWN)
    code = np.asarray([[_WORDS.index(vote.verdict) for vote in row] for row in votes])
    counts = np.eye(3)[code].sum(axis=1)
    scale = np.asarray([0.0, 1.0, 2.0])
    weights = coefficients.agreement_weights("identity" if level == "nominal" else "quadratic", scale)
    wanted = {
        "kappa": (coefficients.cohen_kappa(weights), code.astype(np.float64)),
        "alpha": (_alpha(level), counts),
        "ac1": (coefficients.gwet(np.eye(3)), counts),
    }
    if level == "interval":
        value = np.asarray([[vote.p_a - 0.5 for vote in row] for row in votes])
        wanted["kappa"] = (coefficients.quadratic_kappa(), value)
        wanted["alpha"] = (_alpha(level), _moments(value))
    return {name: over_prompts(rows, coefficient, prompts, seed) for name, (coefficient, rows) in wanted.items()}


def kappa(
    votes: Sequence[tuple[verdicts.Verdict, verdicts.Verdict]], prompts: Sequence[str], seed: int = 0
) -> Estimate:
    """Cohen's kappa of two judges' words on the same pairs, bootstrapped over prompts."""
    return _coefficients(votes, prompts, "nominal", seed)["kappa"]


def _alpha(level: Level) -> Coefficient:
    import numpy as np

    if level == "interval":
        return coefficients.interval_alpha()
    return coefficients.ordinal_alpha(3) if level == "ordinal" else coefficients.distance_alpha(1 - np.eye(3))


def _moments(values: Array) -> Array:
    """Number, sum and sum of squares of each row's values; NaN is no vote."""
    import numpy as np

    given = ~np.isnan(values)
    held = np.where(given, values, 0.0)
    return np.stack([given.sum(axis=1), held.sum(axis=1), (held**2).sum(axis=1)], axis=1).astype(np.float64)


def over_prompts(rows: Array, coefficient: Coefficient, prompts: Sequence[str], seed: int = 0) -> Estimate:
    """A coefficient of `factory.stats.coefficients` whose bootstrap draws prompts, each with all of its rows."""
    import numpy as np

    terms = coefficient.terms(rows)
    index, groups = intervals.places(prompts)
    sums = np.zeros((groups, terms.shape[1]))
    np.add.at(sums, index, terms)
    summed = Patterns(sums, np.ones(groups, dtype=np.int64))
    return coefficients.estimate(summed, Coefficient(lambda units: units, coefficient.finish), seed)


def _panel(found: Evidence, level: Level, seed: int) -> PanelStats:
    """All judges on the pairs that two of them or more gave a verdict on."""
    import numpy as np

    held = Counter(pair for said in found.said.values() for pair in said)
    pairs = sorted(pair for pair, n in held.items() if n > 1)
    at = {pair: i for i, pair in enumerate(pairs)}
    code = np.full((len(pairs), len(found.said)), -1, dtype=np.int64)
    value = np.full(code.shape, np.nan)
    for j, said in enumerate(found.said.values()):
        for pair in said.keys() & at.keys():
            code[at[pair], j] = _WORDS.index(said[pair].verdict)
            value[at[pair], j] = said[pair].p_a - 0.5
    if not pairs:
        return PanelStats(len(found.said), 0, _UNKNOWN, None)
    counts = np.stack([(code == k).sum(axis=1) for k in range(3)], axis=1).astype(np.float64)
    alpha = over_prompts(
        _moments(value) if level == "interval" else counts, _alpha(level), [found.prompt(p) for p in pairs], seed
    )
    effective, notes = _effective(code)
    return PanelStats(len(found.said), len(pairs), alpha, effective, notes)


_FEWEST = 30  # pairs from which the dependence of judges is read


def _effective(code: NDArray[np.int64]) -> tuple[float | None, tuple[str, ...]]:
    """Kish's number from verdicts as categories `(pairs, judges)`, -1 for none."""
    import numpy as np

    voting = (code >= 0).any(axis=0)
    if voting.sum() < 3 or len(code) < _FEWEST:
        return None, ()
    item, judge = np.nonzero(code >= 0)
    votes = Votes(item, judge, code[item, judge], list(range(len(code))), list(range(code.shape[1])), list(_WORDS))
    model = methods.get("dependent")(votes).model
    return (None, ()) if model is None else (model.effective, model.notes)


# ------------------------------------------------------------------------------------------------------- the models


def rankings(found: Evidence, prior: float = 0.0) -> dict[str, Ranking]:
    """The models ranked by each judge, and by the panel: one verdict a pair, that of most judges, a tie where as many
    say one as the other. Nothing where one model wrote everything."""
    by: dict[str, list[Comparison]] = {PANEL: _comparisons(found, majority(found))} if len(found.said) > 1 else {}
    for judge, said in found.said.items():
        by[beside_panel(judge)] = _comparisons(found, said)
    return {judge: rank(rows, prior=prior) for judge, rows in by.items() if rows}


def beside_panel(judge: str) -> str:
    """A judge's name in a table that has a line for the panel."""
    return f"judge {judge}" if judge == PANEL else judge


def majority(found: Evidence) -> dict[verdicts.Pair, verdicts.Verdict]:
    """What most judges say of each pair, and the mean of their p_a; a tie where as many say one as the other."""
    gathered: defaultdict[verdicts.Pair, list[verdicts.Verdict]] = defaultdict(list)
    for said in found.said.values():
        for pair, verdict in said.items():
            gathered[pair].append(verdict)
    return {pair: _most(votes) for pair, votes in sorted(gathered.items())}


def _most(votes: Sequence[verdicts.Verdict]) -> verdicts.Verdict:
    first, *rest = Counter(vote.verdict for vote in votes).most_common()
    word = "tie" if rest and rest[0][1] == first[1] else first[0]
    return verdicts.Verdict(math.fsum(vote.p_a for vote in votes) / len(votes), word)


def _comparisons(found: Evidence, said: Said) -> list[Comparison]:
    """The pairs whose answers two models wrote."""
    rows = []
    for (a, b), verdict in said.items():
        if a in found.candidates and b in found.candidates:
            one, other = found.author(a), found.author(b)
            if one != other:
                rows.append(Comparison(one, other, verdict.verdict, found.prompt((a, b))))
    return rows


# ------------------------------------------------------------------------------------------------------- the tables


_JUDGES = {
    "judge": "judge", "kind": "kind", "judgments": "judgments", "failure_rate": "failed", "verdicts": "verdicts",
    "tie_rate": "ties", "flip_rate": "flips",
}  # fmt: skip
_SCORES = {"judge": "judge", "model": "model", "mean_score": "mean score", "mean_mass": "probability on valid answers"}
_LIKINGS = {
    "judge": "judge", "first_position": "first shown", "longer_wins": "longer", "lists_win": "more lists",
    "bold_wins": "more bold", "headings_win": "more headings",
}  # fmt: skip
_EFFECTS = {
    "judge": "judge", "length_effect": "twice the length", "lists_effect": "lists", "bold_effect": "bold",
    "headings_effect": "headings", "effects_note": "note",
}  # fmt: skip
_OWN = {"judge": "judge", "model": "model", "own_pairs": "pairs", "own_wins": "own wins", "own_excess": "beyond others"}
_TRUST = {
    "judge": "judge", "canaries": "canaries", "canary_ties": "ties", "fooled_rate": "fooled",
    "quarantined": "in quarantine", "calls": "calls", "tokens_per_verdict": "tokens a verdict",
    "cost_per_verdict": "$ a verdict", "unpriced": "unpriced calls",
}  # fmt: skip
_PAIRS = {
    "judge": "judge", "other": "other", "pairs": "pairs", "percent": "same verdict", "cohen_kappa": "Cohen's kappa",
    "krippendorff_alpha": "Krippendorff's alpha", "gwet_ac1": "Gwet's AC1", "same_winner": "same winner",
}  # fmt: skip
_PANEL = {
    "judges": "judges", "pairs": "pairs", "krippendorff_alpha": "Krippendorff's alpha", "effective": "worth judges",
}  # fmt: skip
_MODELS = {
    "by": "by", "model": "model", "wins": "wins", "ties": "ties", "losses": "losses", "strength": "strength",
    "against_mean": "wins against the mean", "against_first": "against the first",
}  # fmt: skip


def block(rows: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> str:
    """Rows as a table of some columns under other names; what no row has is left out, and bounds that are unknown."""
    shown = [{head: _cell(row.get(name)) for name, head in names.items()} for row in rows]
    kept = [head for head in names.values() if any(row[head] not in (None, "") for row in shown)]
    return table([{head: "" if row[head] == "" else row[head] for head in kept} for row in shown], kept)


def _cell(value: Any) -> Any:
    unbounded = isinstance(value, Estimate) and math.isnan(value.low)
    return value.value if unbounded else value


def _blocks(found: JudgesReport) -> Iterable[tuple[str, str]]:
    judges = found.judge_rows()
    yield "Judges", block(judges, _JUDGES)
    if any(row["mean_score"] or row["mean_mass"] for row in judges):
        yield "Scores and confidence", block(judges, _SCORES)
    yield "What wins, of decided pairs that differ in it (sound for the first shown: 0.5)", block(judges, _LIKINGS)
    if any(stats.effects_note or not math.isnan(stats.length_effect.value) for stats in found.judges):
        yield "What each adds to the log-odds of winning, the others held still", block(judges, _EFFECTS)
    if any(stats.own_pairs for stats in found.judges):
        own = [row for row in judges if row["own_pairs"]]
        yield "Answers of the judge's own model against those of others", block(own, _OWN)
    why = "".join(f"\n{stats.judge} in quarantine: {stats.quarantine}" for stats in found.judges if stats.quarantine)
    yield "Canaries and cost", block(judges, _TRUST) + why
    if found.pairs:
        yield f"Two judges on the pairs that both judged ({found.level})", block(found.pair_rows(), _PAIRS)
    if found.panel is not None:
        notes = "".join(f"\n{note}" for note in found.panel.notes)
        yield "All judges", block([found.panel.row()], _PANEL) + notes
    if found.ranking:
        rows = [{"by": by} | model.row() for by, ranking in found.ranking.items() for model in ranking.models]
        notes = "".join(f"\n{by}: {note}" for by, ranking in found.ranking.items() for note in ranking.notes)
        yield "Models, by log-odds of winning (mean 0)", block(rows, _MODELS) + notes
