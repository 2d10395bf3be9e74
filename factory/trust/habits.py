"""Habits of a judge: how often it fails, ties and turns with the order, what it likes beside quality, what it costs.

A habit is no bias yet: longer answers may be better. So style is also measured with length held still, a judge's
liking for its own model's answers against what the other judges say of the same pairs, and, where there is gold, all
of it against people (factory/trust/calibration.py).

  first_position  single answers that went to what was shown first; sound is 1/2
  longer, lists, bold, headings   decided pairs in which the two differ that went to the one with more
  *_effect        log-odds from one logistic regression of the winner on all four differences at once: length in
                  doublings, the others as (a - b) / (a + b), 1 where only one answer has any
  own             decided pairs with one answer of the judge's own model that went to it; `own_excess` is that minus the
                  share of the other judges that say the same (Panickssery et al., 2404.13076, ask it of one judge)

Intervals are 95% and take prompts for independent, not pairs (factory/stats).
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple

from factory import verdicts
from factory.schema import Candidate, Estimate, Judgment
from factory.stats import clusters, intervals
from factory.trust.evidence import Evidence
from factory.verdicts import Pair
from factory.votes.reliability import known

if TYPE_CHECKING:
    from factory.store import Store

_FENCED = re.compile(r"^(```|~~~).*?(?:^\1[^\S\n]*$|\Z)", re.MULTILINE | re.DOTALL)
_LIST = re.compile(r"^[^\S\n]{0,8}(?:[-*+•]|\d{1,3}[.)])[^\S\n]+\S", re.MULTILINE)
_HEADING = re.compile(r"^ {0,3}#{1,6}[^\S\n]+\S", re.MULTILINE)
_BOLD = re.compile(r"\*\*(?=\S)[^*\n]{1,500}?\*\*|(?<!\w)__(?=\S)[^_\n]{1,500}?__(?!\w)")


class Style(NamedTuple):
    """What an answer looks like: characters, and Markdown's list items, bold spans and headings (outside of code)."""

    length: int
    lists: int
    bold: int
    headings: int


def style(text: str) -> Style:
    """Count the marks of a text."""
    prose = _FENCED.sub("", text)
    return Style(len(text), *(sum(1 for _ in mark.finditer(prose)) for mark in (_LIST, _BOLD, _HEADING)))


class Spent(NamedTuple):
    """What a judge's judgments cost, canaries and failures included. `cost` in US dollars of the calls whose price is
    known; `unpriced` answers have none."""

    calls: int = 0
    tokens: int = 0
    cost: float = 0.0
    unpriced: int = 0


@dataclass(frozen=True)
class JudgeStats:
    """What one judge is worth. NaN where there is nothing to count. Judgments in quarantine enter the counts of
    judgments, failures and canaries, and nothing else."""

    judge: str
    kind: str
    model: str
    judgments: int  # rows, canaries left out
    failures: int
    failure_rate: Estimate
    verdicts: int  # pairs decided or tied: both orders together, or from two scores
    tie_rate: Estimate
    flip_rate: Estimate  # pairs whose verdict changed with the order of showing
    first_position: Estimate  # decided single answers that went to what was shown first; sound is 1/2
    longer_wins: Estimate  # decided pairs of unequal length that went to the longer answer
    lists_win: Estimate  # decided pairs with unequal numbers of list items that went to the one with more
    bold_wins: Estimate
    headings_win: Estimate
    length_effect: Estimate  # log-odds of winning for twice the length
    lists_effect: Estimate  # log-odds of winning for all list items of the pair against none
    bold_effect: Estimate
    headings_effect: Estimate
    effects_note: str  # why an effect is unknown
    own_pairs: int  # decided pairs with one answer of the judge's own model
    own_wins: Estimate
    own_excess: Estimate  # own_wins minus the same share of the other judges on the same pairs
    mean_score: Estimate  # of pointwise judges, on the judge's scale
    mean_mass: Estimate  # probability that was on valid answers
    canaries: int  # with a verdict, ties included
    fooled_rate: Estimate  # of the canaries that it decided: preferred to a real answer
    canary_ties: int
    quarantined: int  # judgments in batches whose canaries fooled the judge
    quarantined_batches: int
    quarantine: str  # why
    calls: int | None = None  # answers of a model behind its judgments; None: not asked of the store
    tokens_per_verdict: float | None = None  # a verdict: a pair with one, or for scores a scored candidate
    cost_per_verdict: float | None = None  # US dollars; None when a price is unknown, or nothing was paid for
    unpriced: int | None = None  # calls whose price is unknown

    def row(self) -> dict[str, Any]:
        """One line of a table; None for what is unknown."""
        return {f.name: known(getattr(self, f.name)) for f in fields(self)}


def stats(evidence: Evidence, spent: Mapping[str, Spent] | None = None) -> list[JudgeStats]:
    """All judges, by name. Without `spent` costs are left open."""
    styles = {key: style(candidate.text) for key, candidate in evidence.candidates.items()}
    seen = verdicts.canaries(evidence.rows, evidence.tie_margin)
    rows: defaultdict[str, list[Judgment]] = defaultdict(list)
    for row in evidence.rows:
        rows[row.judge].append(row)
    return [_stats(evidence, judge, rows[judge], styles, seen.get(judge, []), spent) for judge in evidence.judges]


def _stats(
    evidence: Evidence,
    judge: str,
    rows: Sequence[Judgment],
    styles: Mapping[str, Style],
    seen: Sequence[verdicts.Seen],
    spent: Mapping[str, Spent] | None,
) -> JudgeStats:
    said = evidence.said[judge]
    real = [row for row in rows if not row.canary]
    counted = [row for row in real if _counts(evidence, judge, row)]
    decided = {pair: verdict.verdict == "a" for pair, verdict in said.items() if verdict.verdict != "tie"}
    swapped = {pair: verdict.flipped for pair, verdict in said.items() if verdict.flipped is not None}
    fooled = [canary.fooled for canary in seen if canary.fooled is not None]
    ties = sum(canary.tied for canary in seen)
    model = next((row.judge_model for row in reversed(rows) if row.judge_model), "")
    return JudgeStats(
        judge=judge,
        kind=rows[0].kind,
        model=model,
        judgments=len(real),
        failures=sum(row.failure is not None for row in real),
        failure_rate=_of_rows([(row, row.failure is not None) for row in real]),
        verdicts=len(said),
        tie_rate=_of_pairs(evidence, {pair: pair not in decided for pair in said}),
        flip_rate=_of_pairs(evidence, swapped),
        first_position=_of_rows(
            [(row, row.verdict == row.shown_first) for row in counted if row.shown_first and row.verdict in ("a", "b")]
        ),
        **_likings(evidence, decided, styles),
        **_effects(evidence, decided, styles),
        **_own(evidence, judge, decided, model),
        mean_score=_mean([(row, row.score) for row in counted if row.score is not None]),
        mean_mass=_mean([(row, float(row.detail["mass"])) for row in counted if row.detail and "mass" in row.detail]),
        canaries=len(fooled) + ties,
        fooled_rate=intervals.rate(fooled, range(len(fooled))),
        canary_ties=ties,
        **_quarantine(evidence, judge, real),
        **_costs(evidence, judge, None if spent is None else spent.get(judge, Spent())),
    )


def _counts(evidence: Evidence, judge: str, row: Judgment) -> bool:
    """Is the row's candidate or pair among what the panel was read from?"""
    if row.candidate_b is None:
        return row.candidate_a in evidence.panel.scores.get(judge, {})
    return (row.candidate_a, row.candidate_b) in evidence.panel.pairs.get(judge, {})


def _of_rows(found: Sequence[tuple[Judgment, bool]]) -> Estimate:
    return intervals.rate([value for _, value in found], [row.prompt_key for row, _ in found])


def _mean(found: Sequence[tuple[Judgment, float]]) -> Estimate:
    return clusters.mean([value for _, value in found], [row.prompt_key for row, _ in found])


def _of_pairs(evidence: Evidence, found: Mapping[Pair, bool]) -> Estimate:
    return intervals.rate(list(found.values()), [evidence.prompt(pair) for pair in found])


# -------------------------------------------------------------------------------------------------------- style


_FEATURES = ("length", "lists", "bold", "headings")


def _likings(evidence: Evidence, decided: Mapping[Pair, bool], styles: Mapping[str, Style]) -> dict[str, Any]:
    """Of the pairs that differ in a feature: how many went to the answer with more of it."""
    found: dict[str, dict[Pair, bool]] = {name: {} for name in _FEATURES}
    for pair, a_won in decided.items():
        if pair[0] not in styles or pair[1] not in styles:
            continue
        for name, a, b in zip(_FEATURES, styles[pair[0]], styles[pair[1]], strict=True):
            if a != b:
                found[name][pair] = (a > b) == a_won
    names = ("longer_wins", "lists_win", "bold_wins", "headings_win")
    return {name: _of_pairs(evidence, found[f]) for name, f in zip(names, _FEATURES, strict=True)}


def _difference(a: Style, b: Style) -> list[float]:
    """Doublings of length, and for each mark (a - b) / (a + b); the sign turns when the two are exchanged."""
    marks = [(x - y) / (x + y) if x + y else 0.0 for x, y in zip(a[1:], b[1:], strict=True)]
    return [math.log2((a.length + 1) / (b.length + 1)), *marks]


def _effects(evidence: Evidence, decided: Mapping[Pair, bool], styles: Mapping[str, Style]) -> dict[str, Any]:
    """What each feature adds to the log-odds of winning, the others held still. A feature in which no two answers
    differ is left out."""
    import numpy as np

    unknown = Estimate(math.nan, math.nan, math.nan)
    found = dict.fromkeys((f"{name}_effect" for name in _FEATURES), unknown)
    kept = [pair for pair in decided if pair[0] in styles and pair[1] in styles]
    columns = np.asarray([_difference(styles[a], styles[b]) for a, b in kept], dtype=np.float64).reshape(len(kept), 4)
    present = np.flatnonzero(np.abs(columns).sum(axis=0) > 0)
    if not len(present):
        return {**found, "effects_note": "no two answers differ in style" if kept else ""}
    fit = clusters.logistic(columns[:, present], [decided[p] for p in kept], [evidence.prompt(p) for p in kept])
    if fit.coefficients is not None:
        found |= {f"{_FEATURES[k]}_effect": e for k, e in zip(present, fit.coefficients, strict=True)}
    return {**found, "effects_note": fit.why}


# ------------------------------------------------------------------------------------------------------ its own


def _own(evidence: Evidence, judge: str, decided: Mapping[Pair, bool], model: str) -> dict[str, Any]:
    """Pairs in which one answer is of the judge's own model: how often that wins, and how often with the others."""
    wins: dict[Pair, bool] = {}
    excess: dict[Pair, float] = {}
    for pair, a_won in decided.items():
        mine = [_wrote(evidence, key, model) for key in pair]
        if mine[0] == mine[1]:
            continue
        wins[pair] = a_won == mine[0]
        others = [
            (verdict.verdict == "a") == mine[0]
            for other, said in evidence.said.items()
            if other != judge and (verdict := said.get(pair)) is not None and verdict.verdict != "tie"
        ]
        if others:
            excess[pair] = wins[pair] - sum(others) / len(others)
    return {
        "own_pairs": len(wins),
        "own_wins": _of_pairs(evidence, wins),
        "own_excess": clusters.mean(list(excess.values()), [evidence.prompt(pair) for pair in excess]),
    }


def _wrote(evidence: Evidence, key: str, model: str) -> bool:
    candidate: Candidate | None = evidence.candidates.get(key)
    return bool(model) and candidate is not None and candidate.model == model


# -------------------------------------------------------------------------------------------- quarantine and cost


def _quarantine(evidence: Evidence, judge: str, real: Sequence[Judgment]) -> dict[str, Any]:
    out = {batch: why for batch, why in evidence.quarantine.items() if why.judge == judge}
    return {
        "quarantined": sum(row.batch in out for row in real),
        "quarantined_batches": len(out),
        "quarantine": next((why.why() for why in out.values()), ""),
    }


def _costs(evidence: Evidence, judge: str, spent: Spent | None) -> dict[str, Any]:
    """What a verdict cost."""
    if spent is None:
        return {}
    scores = evidence.panel.scores.get(judge, {})
    given = len(evidence.said[judge]) if not scores else sum(score is not None for score in scores.values())
    asked = spent.calls > 0 and given > 0
    return {
        "calls": spent.calls,
        "tokens_per_verdict": spent.tokens / given if asked else None,
        "cost_per_verdict": spent.cost / given if asked and not spent.unpriced else None,
        "unpriced": spent.unpriced,
    }


def spending(store: Store, evidence: Evidence) -> dict[str, Spent]:
    """What the judgments cost, by judge; every attempt counts. A call that leads to no judgment of its own (reasoning
    asked for first) is put to the judge when it is the only one with that model in the run."""
    judge_of = {row.call_key: row.judge for row in evidence.rows if row.call_key}
    if not judge_of:
        return {}
    runs = sorted({row.run for row in evidence.rows})
    alone = _alone(evidence.rows)
    columns = ["key", "round", "run", "model", "prompt_tokens", "completion_tokens", "cost", "failure"]
    found: defaultdict[str, Spent] = defaultdict(Spent)
    rounds = {row.round for row in evidence.rows}
    for call in store.read("calls", columns=columns, where={"purpose": "judge"}):
        judge = judge_of.get(call["key"])
        if judge is None and call["run"] in runs and call["round"] in rounds:
            judge = alone.get(call["model"])
        if judge is not None:
            found[judge] = _plus(found[judge], call)
    return dict(found)


def _alone(rows: Iterable[Judgment]) -> dict[str, str]:
    """Models that one judge alone asks, and that judge."""
    judges: defaultdict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row.judge_model and row.call_key:
            judges[row.judge_model].add(row.judge)
    return {model: next(iter(found)) for model, found in judges.items() if len(found) == 1}


def _plus(spent: Spent, call: Mapping[str, Any]) -> Spent:
    unpriced = call["cost"] is None and call["failure"] is None
    return Spent(
        spent.calls + 1,
        spent.tokens + call["prompt_tokens"] + call["completion_tokens"],
        spent.cost + (call["cost"] or 0.0),
        spent.unpriced + unpriced,
    )
