"""What stopping rules read of a run: a `RoundEvidence` for each round, and what several rules ask of them.

The measure that decides is the held-out pass rate; where nothing can be verified, the win rate against the start by a
judge that did not label (at equal lengths where that was fitted), on whose scale the start itself is a half.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from factory.schema import Estimate, Judged, PolicyReport
from factory.stats import intervals

Measure = Literal["pass rate", "win rate by a judge that did not label", "win rate by a judge", "win rate"]
HALF = Estimate(0.5, 0.5, 0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundEvidence:
    """What the rules may read of one round. Round 0 is the start policy's evaluation: nothing labelled or trained."""

    round: int
    report: PolicyReport
    """On held-out prompts; its gain and win rates are against the start policy."""
    seconds: float = 0.0
    """Wall clock of the round's stages; an attempt that was cut off is not counted, only the one that ended."""
    tokens: int = 0
    """Tokens generated in the round, by policies and judges; answers that another run paid for are not counted."""
    cost: float | None = None
    """US dollars; None: a price is unknown."""
    preferences: int = 0
    """Preferences that the round found."""
    labels: int = 0
    """Labels (unpaired) that the round found."""
    trained_on: str | None = None
    """The table that its training reads: preferences, labels, or prompts (the policy answers them itself)."""
    rows: int | None = None
    """Rows of that table which there were to train on."""
    lost: Mapping[str, int] = field(default_factory=dict)
    """Pairs of answers that became no preference (or answers that became no label), by reason."""
    gain: Estimate | None = None
    """Pass rate minus that of the champion before this round, paired by prompt."""
    flips: Mapping[str, Estimate] = field(default_factory=dict)
    """By judge: share of the labelling verdicts that changed with the order of showing."""
    effective: float | None = None
    """Independent judges that the panel is worth."""
    human: Mapping[str, Estimate] = field(default_factory=dict)
    """By judge: share of pairs on which it names the winner that people name."""
    margin: float | None = None
    """Implicit-reward margin of the training pairs at the end of training (mean of the last quarter of the steps)."""
    accuracy: float | None = None
    """Share of the training pairs with a margin above zero, same steps."""
    flags: tuple[str, ...] = ()
    """Rules that bar this policy from being champion; `flagged` sets them."""

    @classmethod
    def from_json(cls, report: Mapping[str, Any]) -> RoundEvidence:
        """The evidence in a round's report.json; what an older one lacks stays unknown."""
        pairs, agreement = report.get("pairs") or {}, report.get("agreement") or {}
        last = (report.get("training") or {}).get("last") or {}
        read = report.get("trained_on") or {}
        trained_on = read.get("table")
        lost = pairs.get("labels_dropped" if trained_on == "labels" else "dropped")
        return cls(
            round=report["round"],
            report=PolicyReport.from_json(report["report"]),
            seconds=float(report.get("seconds") or 0.0),
            tokens=int(report.get("tokens") or 0),
            cost=report.get("cost"),
            preferences=int(pairs.get("preferences") or 0),
            labels=int(pairs.get("labels") or 0),
            trained_on=trained_on,
            rows=read.get("rows"),
            lost=lost or {},
            gain=_estimate(report.get("gain_champion")),
            flips=dict(_flips(agreement)),
            effective=(agreement.get("panel") or {}).get("effective") or pairs.get("effective_judges"),
            human=dict(_with_people(agreement)),
            margin=last.get("rewards/margins"),
            accuracy=last.get("rewards/accuracies"),
        )


def _estimate(bounds: Sequence[float | None] | None) -> Estimate | None:
    return None if bounds is None else Estimate(*(math.nan if bound is None else bound for bound in bounds))


def _flips(agreement: Mapping[str, Any]) -> Iterator[tuple[str, Estimate]]:
    for judge in agreement.get("judges") or ():
        rate = _estimate(judge.get("flip_rate"))
        if rate is not None and value_of(rate) is not None:
            yield judge["judge"], rate


def _with_people(agreement: Mapping[str, Any]) -> Iterator[tuple[str, Estimate]]:
    for pair in agreement.get("pairs") or ():
        both, rate = {pair["judge"], pair["other"]}, _estimate(pair.get("same_winner"))
        if "human" in both and len(both) == 2 and rate is not None and value_of(rate) is not None:
            yield min(both - {"human"}), rate


def value_of(estimate: Estimate | None) -> float | None:
    """The value; None where it was not measured."""
    return None if estimate is None or math.isnan(estimate.value) else estimate.value


# ------------------------------------------------------------------------------------------------- who measures what


def labelling_judge(report: PolicyReport) -> Judged | None:
    """A judge that labelled what the policy was trained on, with its win rate."""
    return next((j for j in report.judged if j.independent is False and value_of(j.win_rate) is not None), None)


def other_judge(report: PolicyReport, *, sure: bool = True) -> Judged | None:
    """A judge that did not label; not `sure`: also one of which nobody knows."""
    found = [j for j in report.judged if value_of(j.win_rate) is not None]
    known = next((j for j in found if j.independent), None)
    return known or (None if sure else next((j for j in found if j.independent is None), None))


def at_equal_lengths(judge: Judged) -> Estimate | None:
    """Its length-controlled win rate, or else the plain one."""
    return judge.length_controlled if value_of(judge.length_controlled) is not None else judge.win_rate


def measure_of(history: Sequence[RoundEvidence]) -> Measure | None:
    """The measure that decides in this run; None: nothing was measured."""
    reports = [e.report for e in history]
    if any(value_of(r.pass_rate) is not None for r in reports):
        return "pass rate"
    if any(other_judge(r, sure=False) for r in reports):
        return "win rate by a judge that did not label"
    if any(value_of(j.win_rate) is not None for r in reports for j in r.judged):
        return "win rate by a judge"
    return "win rate" if any(value_of(r.win_rate) is not None for r in reports) else None


def quality(evidence: RoundEvidence, measure: Measure | None) -> Estimate | None:
    """What decides, of one round. A win rate is against the start, which has a half."""
    report = evidence.report
    if measure == "pass rate" or measure is None:
        return report.pass_rate
    if evidence.round == 0:
        return HALF
    if measure == "win rate":
        return report.length_controlled if value_of(report.length_controlled) is not None else report.win_rate
    judge = other_judge(report, sure=False)
    if measure == "win rate by a judge":
        judge = next((j for j in report.judged if value_of(j.win_rate) is not None), None)
    return None if judge is None else at_equal_lengths(judge)


# --------------------------------------------------------------------------------------------------- round by round


def best_of(history: Sequence[RoundEvidence]) -> int:
    """The index of the best round among those that no rule bars; ties and unmeasured rounds go to the earlier."""
    measure = measure_of(history)
    best, highest = 0, -math.inf
    for i, evidence in enumerate(history):
        value = value_of(quality(evidence, measure))
        if value is not None and not evidence.flags and value > highest:
            best, highest = i, value
    return best


def gain_since(last: RoundEvidence, then: RoundEvidence, measure: Measure | None) -> Estimate | None:
    """The gain of a round on an earlier one, which was champion before it: paired by prompt where it was measured so,
    else as if the two knew nothing of each other, which is wider."""
    if measure == "pass rate":
        if value_of(last.gain) is not None:
            return last.gain
        if then.round == 0:
            return gain_since_start(last, then)
    now, before = quality(last, measure), quality(then, measure)
    return None if now is None or before is None else intervals.difference(now, before)


def gain_since_start(last: RoundEvidence, start: RoundEvidence) -> Estimate | None:
    """The pass rate's gain on the start policy, paired where it was measured so."""
    if value_of(last.report.gain) is not None:
        return last.report.gain
    if last.report.pass_rate is None or start.report.pass_rate is None:
        return None
    return intervals.difference(last.report.pass_rate, start.report.pass_rate)


def is_sure_gain(history: Sequence[RoundEvidence]) -> bool:
    """Is the last round surely better than the champion before it, allowing for the looks so far?"""
    last, before = history[-1], history[:-1]
    if not before:
        return False
    gain = gain_since(last, before[best_of(before)], measure_of(history))
    return gain is not None and intervals.widened(gain, max(last.round, 1)).low > 0
