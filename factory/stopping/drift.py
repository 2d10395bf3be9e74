"""Rules on how the answers change: their length, their variety, and how many of them are broken.

A change is judged twice. Against the start it may not pass `in_all`, whatever else is gained. Since the champion it may
not pass `since_champion`, unless the policy is surely better than the champion was: what quality pays for is no drift.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from factory.schema import Decision, Estimate, PolicyReport
from factory.stats import intervals
from factory.stopping.evidence import RoundEvidence, best_of, is_sure_gain, value_of
from factory.stopping.rules import Multiple, Rule, Share, plain, points, rules


@rules.register("length_drift", bars=True)
class LengthDrift(Rule):
    """Answers become much longer, or much shorter, and nothing is gained by it. A policy that drifts so is never
    champion."""

    rule: str = "length_drift"
    since_champion: Multiple = 2.5
    """Multiple of the champion's mean length in tokens, or its inverse, that counts without a sure gain."""
    in_all: Multiple = 3.0
    """Multiple of the start's, or its inverse, that always counts."""

    def check(self, history: Sequence[RoundEvidence]) -> Decision:
        """By mean tokens; the interval of the multiple must lie beyond the limit."""
        last, then, start = history[-1], _champion_before(history), history[0]
        in_all, since = (_multiple(last.report.tokens, e.report.tokens) for e in (start, then))
        if last.round == 0 or in_all is None or since is None:
            return self.say(False, "no length to compare yet" if last.round == 0 else "length was not measured")
        far, drifts = _beyond(in_all, self.in_all), _beyond(since, self.since_champion)
        reason = f"answers {in_all.value:.2f} times as long as the start's, {since.value:.2f} times the champion's"
        numbers = {"of_start": in_all, "of_champion": since, "champion_round": then.round}
        if far:
            return self.say(True, f"{reason}: beyond {self.in_all:g}", **numbers)
        if drifts and not is_sure_gain(history):
            return self.say(True, f"{reason}: beyond {self.since_champion:g} without a sure gain", **numbers)
        return self.say(False, reason, **numbers)


def _champion_before(history: Sequence[RoundEvidence]) -> RoundEvidence:
    return history[best_of(history[:-1])] if len(history) > 1 else history[0]


def _multiple(now: Estimate | None, then: Estimate | None) -> Estimate | None:
    """now / then with its interval, from the logarithms (square-and-add)."""
    if value_of(now) is None or value_of(then) is None or now is None or then is None:
        return None
    if now.value <= 0 or then.value <= 0:
        return None
    logs = intervals.difference(_log(now), _log(then))
    return Estimate(*(math.exp(bound) for bound in logs))


def _log(estimate: Estimate) -> Estimate:
    return Estimate(*(math.log(max(bound, 1e-9)) if not math.isnan(bound) else bound for bound in estimate))


def _beyond(multiple: Estimate, limit: float) -> bool:
    """Is even the nearer end of the interval beyond the limit or its inverse? Without bounds the value decides."""
    low = multiple.value if math.isnan(multiple.low) else multiple.low
    high = multiple.value if math.isnan(multiple.high) else multiple.high
    return low > limit or high < 1 / limit


@rules.register("diversity_collapse", bars=True)
class DiversityCollapse(Rule):
    """Answers lose their variety: distinct word pairs, entropy (nats a token), what self-BLEU leaves of 1. A policy
    that has collapsed is never champion."""

    rule: str = "diversity_collapse"
    since_champion: Share = 0.25
    """Share of the champion's variety whose loss counts without a sure gain; of entropy twice that, in logarithms."""
    in_all: Share = 0.45
    """Share of the start's whose loss always counts; for entropy as above."""

    def check(self, history: Sequence[RoundEvidence]) -> Decision:
        """By each measure that there is; one is enough."""
        last, then, start = history[-1], _champion_before(history), history[0]
        in_all, since = _losses(last.report, start.report), _losses(last.report, then.report)
        if last.round == 0 or not in_all:
            return self.say(False, "no variety to compare yet" if last.round == 0 else "variety was not measured")
        reason = "since the start " + ", ".join(f"{_VARIETY[name]} {-loss:+.0%}" for name, loss in in_all.items())
        numbers = {"lost_in_all": in_all, "lost_since_champion": since, "champion_round": then.round}
        far = [name for name, loss in in_all.items() if loss > _allowed(name, self.in_all)]
        drifts = [name for name, loss in since.items() if loss > _allowed(name, self.since_champion)]
        if far:
            says = ", ".join(_VARIETY[name] for name in far)
            return self.say(True, f"{reason}: more than {self.in_all:.0%} lost ({says})", **numbers)
        if drifts and not is_sure_gain(history):
            says = ", ".join(f"{_VARIETY[name]} {-since[name]:+.0%}" for name in drifts)
            return self.say(True, f"{reason}; since the champion {says} without a sure gain", **numbers)
        return self.say(False, reason, **numbers)


_VARIETY = {"distinct_2": "distinct-2", "entropy": "entropy", "self_bleu": "what self-BLEU leaves"}


def _losses(now: PolicyReport, then: PolicyReport) -> dict[str, float]:
    """By measure, the share that is gone; what was not measured, or nothing then, is left out."""
    found = {}
    for name in _VARIETY:
        new, old = _variety(now, name), _variety(then, name)
        if new is not None and old is not None and old > 0:
            found[name] = 1 - new / old
    return found


def _variety(report: PolicyReport, name: str) -> float | None:
    if name == "self_bleu":
        return None if report.self_bleu is None else 1 - report.self_bleu
    return value_of(report.entropy) if name == "entropy" else report.distinct_2


def _allowed(name: str, share: float) -> float:
    """Entropy falls about as the square of the distinct pairs."""
    return 1 - (1 - share) ** 2 if name == "entropy" else share


@rules.register("degeneration", bars=True)
class Degeneration(Rule):
    """More answers are broken (loops, copies of the prompt, empty) or refuse than at the start. A policy that
    degenerates is never champion."""

    rule: str = "degeneration"
    broken: Share = 0.05
    """Share of answers by which the broken ones must surely have grown."""
    refusals: Share = 0.15
    """The same of refusals."""

    def check(self, history: Sequence[RoundEvidence]) -> Decision:
        """By the lower bound of the growth since the start, widened for the looks so far."""
        last, start = history[-1], history[0]
        if last.round == 0:
            return self.say(False, "nothing to compare with yet")
        limits = {"degenerate": self.broken, "refuse": self.refusals}
        growth = {name: _growth(name, last, start) for name in limits}
        known = {name: change for name, change in growth.items() if change is not None}
        if not known:
            return self.say(False, "broken answers were not counted")
        over = [name for name, change in known.items() if change.low > limits[name]]
        words = {"degenerate": "broken answers", "refuse": "refusals"}
        reason = "since the start " + ", ".join(f"{words[name]} {points(c.value)}" for name, c in known.items())
        if over:
            reason += ": surely more than " + " and ".join(points(limits[name]) for name in over)
        return self.say(bool(over), reason, growth={name: plain(change) for name, change in known.items()}, over=over)


def _growth(name: str, last: RoundEvidence, start: RoundEvidence) -> Estimate | None:
    now, then = last.report.broken.get(name), start.report.broken.get(name)
    if now is None or then is None or value_of(now) is None or value_of(then) is None:
        return None
    return intervals.widened(intervals.difference(now, then), last.round)
