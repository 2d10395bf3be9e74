"""The rule that asks whether the rounds still gain anything."""

from __future__ import annotations

from collections.abc import Sequence

from factory.schema import Decision
from factory.stats import intervals
from factory.stopping.evidence import RoundEvidence, best_of, gain_since, measure_of, quality, value_of
from factory.stopping.rules import Positive, Rule, Share, count, percent, points, rules


@rules.register("no_gain")
class NoGain(Rule):
    """The held-out measure (`evidence.measure_of`) no longer rises.

    Either the data rule a worthwhile gain out: the upper bound of the gain since the champion is below
    `worthwhile_gain`. Or patience is out: in so many rounds no policy was better than the champion, or the straight
    line through them rises by no more than `step` a round. An interval that holds zero is only a lack of data and stops
    nothing, and a round that gave no new policy rules no gain out. Every round looks at the same prompts again, so that
    the interval of the k-th look is widened to let all looks together err at most 5% of the time (`intervals.widened`).

    The line is there because noise alone makes champions: of k equally good policies the k-th is the best so far one
    time in k, and patience would begin anew. It also weighs all rounds of the window instead of the luckiest.
    """

    rule: str = "no_gain"
    worthwhile_gain: Share = 0.005
    """In pass rate (or win rate): 0.005 is five prompts of a thousand."""
    patience: Positive = 4
    """Rounds without progress after which to give up."""
    step: Share = 0.004
    """Rise of the line in a round that is progress: 0.004 is four prompts of a thousand."""

    def check(self, history: Sequence[RoundEvidence]) -> Decision:
        """By the last round against the champion before it, and by the rounds that patience looks at."""
        last, before, measure = history[-1], history[:-1], measure_of(history)
        now = quality(last, measure)
        rate = value_of(now)
        if not before or rate is None:
            what = f"the {measure or 'pass rate'} was not measured"
            return self.say(False, "no round to compare yet" if not before else what)
        best = before[best_of(before)]
        gain = gain_since(last, best, measure)
        waited, rise = len(history) - 1 - best_of(history), self._rise(history)
        reason = f"held-out {measure} {rate:.1%}, round {best.round} had {percent(quality(best, measure))}"
        key = "pass_rate" if measure == "pass rate" else "win_rate"
        evidence = {key: rate, "champion_round": best.round, "rounds_without_gain": waited, "rise_a_round": rise}
        if gain is not None:
            bounds = intervals.widened(gain, last.round or 1)
            evidence |= {"gain": gain.value, "gain_low": bounds.low, "gain_high": bounds.high}
            if bounds.high < self.worthwhile_gain and last.report.policy != best.report.policy:
                says = f"{reason}: even the upper bound of the gain, {points(bounds.high)}, is below the worthwhile"
                return self.say(True, f"{says} {points(self.worthwhile_gain)}", **evidence)
            reason += f" (gain {points(gain.value)}, could be {points(bounds.low)} to {points(bounds.high)})"
        if waited >= self.patience:
            return self.say(True, f"{reason}: {count(waited, 'round')} without a better policy", **evidence)
        if rise is not None and rise <= self.step:
            says = f"{reason}: over {count(self.patience, 'round')} the line rises by {100 * rise:+.2f} points a round"
            return self.say(True, f"{says}, progress is more than {100 * self.step:+.2f}", **evidence)
        return self.say(False, reason, **evidence)

    def _rise(self, history: Sequence[RoundEvidence]) -> float | None:
        """The least-squares slope over the last `patience` rounds and the one before them; None while there are fewer,
        or where one of them was not measured or is barred."""
        window, measure = history[-self.patience - 1 :], measure_of(history)
        values = [value for e in window if not e.flags and (value := value_of(quality(e, measure))) is not None]
        if len(values) < self.patience + 1:
            return None
        places = [i - self.patience / 2 for i in range(len(values))]
        return sum(p * v for p, v in zip(places, values, strict=True)) / sum(p * p for p in places)
