"""The rule that asks whether the rounds still gain anything."""

from __future__ import annotations

from collections.abc import Sequence

from factory import intervals
from factory.schema import Decision
from factory.stopping.evidence import RoundEvidence, best_of, gain_since, measure_of, quality, value_of
from factory.stopping.rules import Positive, Rule, Share, count, percent, points, rules


@rules.register("no_gain")
class NoGain(Rule):
    """The held-out measure (`evidence.measure_of`) no longer rises.

    Either the data rule a worthwhile gain out: the upper bound of the gain since the champion is below
    `worthwhile_gain`. Or patience is out: in so many rounds no policy was better by `step` than the last that was. An
    interval that holds zero is only a lack of data and stops nothing. Every round looks at the same prompts again, so
    that the interval of the k-th look is widened to let all looks together err at most 5% of the time
    (`intervals.widened`).

    Without a `step`, noise alone makes new champions on a plateau: of k equal policies the k-th is the best so far one
    time in k, and patience begins anew.
    """

    rule: str = "no_gain"
    worthwhile_gain: Share = 0.02
    """In pass rate (or win rate): 0.02 is two prompts of a hundred."""
    patience: Positive = 2
    """Rounds without progress after which to give up."""
    step: Share = 0.0
    """Progress is this much above the last round that was progress."""

    def check(self, history: Sequence[RoundEvidence]) -> Decision:
        """By the last round against the champion before it, and by the rounds since the last progress."""
        last, before, measure = history[-1], history[:-1], measure_of(history)
        now = quality(last, measure)
        rate = value_of(now)
        if not before or rate is None:
            what = f"the {measure or 'pass rate'} was not measured"
            return self.say(False, "no round to compare yet" if not before else what)
        best = before[best_of(before)]
        gain = gain_since(last, best, measure)
        waited = self._waited(history)
        reason = f"held-out {measure} {rate:.1%}, round {best.round} had {percent(quality(best, measure))}"
        key = "pass_rate" if measure == "pass rate" else "win_rate"
        evidence = {key: rate, "champion_round": best.round, "rounds_without_gain": waited}
        if gain is not None:
            bounds = intervals.widened(gain, last.round or 1)
            evidence |= {"gain": gain.value, "gain_low": bounds.low, "gain_high": bounds.high}
            if bounds.high < self.worthwhile_gain:
                says = f"{reason}: even the upper bound of the gain, {points(bounds.high)}, is below the worthwhile"
                return self.say(True, f"{says} {points(self.worthwhile_gain)}", **evidence)
            reason += f" (gain {points(gain.value)}, could be {points(bounds.low)} to {points(bounds.high)})"
        if waited >= self.patience:
            better = "a better policy" if self.step == 0 else f"a policy better by {points(self.step)}"
            return self.say(True, f"{reason}: {count(waited, 'round')} without {better}", **evidence)
        return self.say(False, reason, **evidence)

    def _waited(self, history: Sequence[RoundEvidence]) -> int:
        """Rounds since the last progress; a barred round is none."""
        measure = measure_of(history)
        reached, when = None, 0
        for i, evidence in enumerate(history):
            value = value_of(quality(evidence, measure))
            if value is None or evidence.flags:
                continue
            if reached is None or value > reached + self.step:
                reached, when = value, i
        return len(history) - 1 - when
