"""Single labels, desirable or not, out of the panel's scores or out of preferences (the data of KTO, 2402.01306).

  threshold   an answer is desirable when its score reaches the threshold; where every judge used says whether all that
              was asked for is met, that is the label
  quantile    over all answers of the round: those at or above the upper quantile are desirable, those at or below the
              lower one are not, and what lies between has no label
  pairs       what is chosen is desirable, what is rejected is not; an answer that is both has no label

An answer without a usable score has no label: a failed judgment is neither good nor bad.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from factory.pairing.choosing import Choice
from factory.pairing.combining import Rule
from factory.schema import Candidate
from factory.verdicts import SAME, Panel, Score

LabelBy = Literal["threshold", "quantile", "pairs", "none"]
LabelWeights = Literal["none", "distance", "balanced"]
BALANCE = (1.0, 4 / 3)
"""Where (weight of all desirable) / (weight of all undesirable) has to lie: 2402.01306, eq. 8."""


class Scored(NamedTuple):
    """The panel's score of one answer, 0 to 1; whether all that was asked for is met (None: not all judges say); and
    its reward: the score on the judge's own scale where one judge gives it, else the score."""

    share: float
    all_met: bool | None
    reward: float


class Graded(NamedTuple):
    """One answer with its label and score, 0 to 1. `distance`: how far the score lies from where the label would turn,
    as a share of the way to the end of the scale. `flipped`: the label was turned about on purpose."""

    candidate: Candidate
    label: bool
    score: float
    distance: float = 1.0
    flipped: bool = False


class Labels(NamedTuple):
    """What became labels, and why other answers did not."""

    graded: list[Graded]
    dropped: Counter[str]


def scores_of(
    candidates: Iterable[Candidate], panel: Panel, judges: Sequence[str], rule: Rule, standing: Mapping[str, float]
) -> dict[str, Scored]:
    """The score of each answer that has one, by key.

    It is the lead judge's (combine lead), else the mean over pointwise judges (by their weights for combine weighted),
    as a share of the scale; with pairwise judges alone, the answer's standing.
    """
    used = [judge for judge in judges if judge in panel.scores]
    if rule.combine == "lead":
        used = [judge for judge in used if judge == rule.lead]
    found: dict[str, Scored] = {}
    for key in (c.key for c in candidates if c.failure is None):
        said = {judge: score for judge in used if (score := panel.scores[judge].get(key)) is not None}
        if said and (scored := _together(said, rule, alone=len(used) == 1)) is not None:
            found[key] = scored
        elif not used and key in standing:
            found[key] = Scored(standing[key], None, standing[key])
    return found


def _together(said: Mapping[str, Score], rule: Rule, *, alone: bool) -> Scored | None:
    """The judges' scores of one answer as one; None when none of them has weight."""
    weights = {judge: rule.weights.get(judge, 0.0) if rule.weights else 1.0 for judge in said}
    total = math.fsum(weights.values())
    if total <= 0:
        return None
    share = math.fsum(weights[judge] * score.share for judge, score in said.items()) / total
    met = [score.all_met for score in said.values() if score.all_met is not None]
    reward = next(iter(said.values())).value if alone else share
    return Scored(share, all(met) if len(met) == len(said) else None, reward)


# ------------------------------------------------------------------------------------------------- scores to labels


def by_threshold(candidates: Iterable[Candidate], scores: Mapping[str, Scored], threshold: float) -> Labels:
    """Labels of the answers, in order of key; dropped: no_score."""
    answered = _answered(candidates)
    known = [(c, scores[c.key]) for c in answered if c.key in scores]
    return Labels([_grade(c, s, threshold) for c, s in known], Counter(no_score=len(answered) - len(known)))


def _grade(candidate: Candidate, scored: Scored, threshold: float) -> Graded:
    share = scored.share
    if scored.all_met is not None:
        return Graded(candidate, scored.all_met, share, 1.0 if scored.all_met else 1 - share)
    return Graded(candidate, share >= threshold, share, _distance(share, threshold))


def by_quantile(candidates: Iterable[Candidate], scores: Mapping[str, Scored], low: float, high: float) -> Labels:
    """Labels of the ends, in order of key; dropped: no_score, middle. Where both quantiles are one score, as when most
    answers have the same, answers with that score are in the middle. `distance` counts from half way between the two.
    """
    answered = _answered(candidates)
    known = [(c, scores[c.key].share) for c in answered if c.key in scores]
    values = sorted(share for _, share in known)
    bottom, top = (quantile(values, q) for q in (low, high)) if values else (0.0, 0.0)
    graded = []
    for candidate, share in known:
        good, bad = share >= top and share > bottom, share <= bottom and share < top
        if good or bad:
            graded.append(Graded(candidate, good, share, _distance(share, (bottom + top) / 2)))
    return Labels(graded, Counter(no_score=len(answered) - len(known), middle=len(known) - len(graded)))


def quantile(values: Sequence[float], q: float) -> float:
    """The q-quantile of sorted values, linear between neighbours (numpy's default)."""
    place = q * (len(values) - 1)
    below = min(int(place), len(values) - 2) if len(values) > 1 else 0
    above = min(below + 1, len(values) - 1)
    return values[below] + (values[above] - values[below]) * (place - below)


def from_choices(choices: Iterable[Choice]) -> Labels:
    """Labels out of preferences; dropped: both (chosen here, rejected there)."""
    sides: defaultdict[str, list[Graded]] = defaultdict(list)
    for choice in choices:
        sides[choice.chosen.key].append(_of_side(choice.chosen, True, choice.margin))
        sides[choice.rejected.key].append(_of_side(choice.rejected, False, choice.margin))
    single = [found for _, found in sorted(sides.items()) if len({g.label for g in found}) == 1]
    return Labels([_mean(found) for found in single], Counter(both=len(sides) - len(single)))


def _of_side(candidate: Candidate, chosen: bool, margin: float) -> Graded:
    return Graded(candidate, chosen, (1 + margin) / 2 if chosen else (1 - margin) / 2, margin)


def _mean(found: Sequence[Graded]) -> Graded:
    score, distance = (
        math.fsum(values) / len(found) for values in ((g.score for g in found), (g.distance for g in found))
    )
    return found[0]._replace(score=score, distance=distance)


def _answered(candidates: Iterable[Candidate]) -> list[Candidate]:
    return sorted((c for c in candidates if c.failure is None), key=lambda c: c.key)


def _distance(share: float, pivot: float) -> float:
    room = 1 - pivot if share >= pivot else pivot
    off = abs(share - pivot)
    return (off / room if off > SAME else 0.0) if room > 0 else 1.0


# ---------------------------------------------------------------------------------------------------------- weights


def weigh(graded: Sequence[Graded], how: LabelWeights) -> list[float]:
    """Each label's weight in training, in the same order.

    none: 1. distance: the label's `distance`, so that what is close to turning counts little. balanced: one weight for
    each kind, the larger 1, so that both kinds together weigh as `BALANCE` asks; a kind alone is left as it is.
    """
    if how == "distance":
        return [g.distance for g in graded]
    good = sum(g.label for g in graded)
    bad = len(graded) - good
    if how == "none" or not (good and bad):
        return [1.0] * len(graded)
    ratio = good / bad
    low, high = BALANCE
    weight = {True: high / ratio if ratio > high else 1.0, False: ratio / low if ratio < low else 1.0}
    return [weight[g.label] for g in graded]
