"""When a run ends, and which of its policies it gives back. Pure: evidence of the rounds in, a decision out.

A rule is a frozen model of its settings that is called with the evidence so far, round 0 (the start policy) first, and
says whether to stop, why, and from which numbers. A new rule is one class here with one registration. What the rules
read is measured on held-out prompts, the same ones every round; `no_gain` widens its interval for that.

    config = StopConfig.model_validate({"max_rounds": 3, "any": [{"rule": "kl_budget", "nats": 40}]})
    decide(evidence, config).stop, champion(evidence, config)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny, model_validator

from factory import intervals
from factory.faults import FactoryError
from factory.registry import Registry
from factory.schema import Decision, Estimate, PolicyReport

# --------------------------------------------------------------------------------------------------- the evidence


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundEvidence:
    """What the rules may read of one round. Round 0 is the start policy's evaluation: nothing labelled or trained."""

    round: int
    report: PolicyReport
    """On held-out prompts; its gain and win rate are against the start policy."""
    seconds: float = 0.0
    """Wall clock of the round's stages; an attempt that was cut off is not counted, only the one that ended."""
    tokens: int = 0
    """Tokens generated in the round, by policies and judges; answers that another run paid for are not counted."""
    cost: float | None = None
    """US dollars; None: a price is unknown."""
    preferences: int = 0
    """Preferences that the round trained on."""
    gain: Estimate | None = None
    """Pass rate minus that of the champion before this round, paired by prompt."""
    flags: tuple[str, ...] = ()
    """Rules that bar this policy from being champion; `flagged` sets them."""

    @classmethod
    def from_json(cls, report: Mapping[str, Any]) -> RoundEvidence:
        """The evidence in a round's report.json."""
        gain = report.get("gain_champion")
        return cls(
            round=report["round"],
            report=PolicyReport.from_json(report["report"]),
            seconds=float(report.get("seconds") or 0.0),
            tokens=int(report.get("tokens") or 0),
            cost=report.get("cost"),
            preferences=int((report.get("pairs") or {}).get("preferences") or 0),
            gain=None if gain is None else Estimate(*(math.nan if bound is None else bound for bound in gain)),
        )


# ------------------------------------------------------------------------------------------------------- the rules


class Rule(BaseModel):
    """Settings of one rule; calling it with the history (never empty) gives its word on the last round."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    rule: str

    def __call__(self, history: Sequence[RoundEvidence]) -> Decision:
        """Stop after the last of `history`?"""
        raise NotImplementedError

    def say(self, stop: bool, reason: str, **evidence: Any) -> Decision:
        """A decision in this rule's name."""
        return Decision(stop, self.rule, reason, {name: _plain(value) for name, value in evidence.items()})


rules: Registry[type[Rule]] = Registry("stopping rule")


def _number_only(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number is wanted, not yes/no (YAML reads a bare yes, no, on and off as true or false)")
    return value


Positive = Annotated[int, BeforeValidator(_number_only), Field(ge=1)]
Amount = Annotated[float, BeforeValidator(_number_only), Field(gt=0)]
Share = Annotated[float, BeforeValidator(_number_only), Field(ge=0, le=1)]


@rules.register("max_rounds")
class MaxRounds(Rule):
    """So many rounds of training, no more."""

    rule: str = "max_rounds"
    rounds: Positive

    def __call__(self, history: Sequence[RoundEvidence]) -> Decision:
        done = history[-1].round
        return self.say(done >= self.rounds, f"{done} of at most {_count(self.rounds, 'round')} done", rounds=done)


@rules.register("budget")
class Budget(Rule):
    """What the run may use in all: it stops when that is spent, and before a round that would overrun it."""

    rule: str = "budget"
    seconds: Amount | None = None
    tokens: Positive | None = None
    cost: Amount | None = None
    """US dollars; a round of unknown price counts as nothing, and the reason says so."""
    look_ahead: bool = True
    """Stop also when another round like the last would pass the budget."""

    @model_validator(mode="after")
    def _something(self) -> Budget:
        if self.seconds is None and self.tokens is None and self.cost is None:
            raise ValueError("a budget needs at least one of seconds, tokens, cost")
        return self

    def __call__(self, history: Sequence[RoundEvidence]) -> Decision:
        spent = {
            "seconds": [e.seconds for e in history],
            "tokens": [float(e.tokens) for e in history],
            "cost": [e.cost or 0.0 for e in history],
        }
        unpriced = sum(1 for e in history if e.cost is None)
        said, over = [], []
        for unit, limit in (("seconds", self.seconds), ("tokens", self.tokens), ("cost", self.cost)):
            if limit is None:
                continue
            total = sum(spent[unit])
            following = spent[unit][-1] if self.look_ahead and len(history) > 1 else 0.0
            said.append(_spending(unit, total, following, limit, unpriced))
            if total >= limit or total + following > limit:
                over.append(unit)
        sums = {unit: sum(values) for unit, values in spent.items()}
        return self.say(bool(over), "; ".join(said), over=over, **sums, rounds_of_unknown_price=unpriced)


def _spending(unit: str, total: float, following: float, limit: float, unpriced: int) -> str:
    name = "dollars" if unit == "cost" else unit
    text = f"{total:,.6g} of {limit:,.6g} {name} used"
    if total < limit < total + following:
        text += f", and another round like the last would take {following:,.6g}"
    if unit == "cost" and unpriced:
        text += f" ({_count(unpriced, 'round')} of unknown price not counted)"
    return text


@rules.register("no_gain")
class NoGain(Rule):
    """Held-out pass rate no longer rises.

    Either the data rule a worthwhile gain out: the upper bound of the gain since the champion is below
    `worthwhile_gain`. Or patience is out: so many rounds in a row have not bettered the champion's pass rate. An
    interval that holds zero is only a lack of data and stops nothing. Every round looks at the same prompts again, so
    that the interval of the k-th look is widened to let all looks together err at most 5% of the time
    (`intervals.widened`).
    """

    rule: str = "no_gain"
    worthwhile_gain: Share = 0.02
    """In pass rate: 0.02 is two prompts of a hundred."""
    patience: Positive = 2
    """Rounds without a better policy after which to give up."""

    def __call__(self, history: Sequence[RoundEvidence]) -> Decision:
        last, before = history[-1], history[:-1]
        rate = _value(last.report.pass_rate)
        if not before or rate is None:
            return self.say(False, "no round to compare yet" if not before else "the pass rate was not measured")
        best = before[_best(before)]
        gain = _gain_since(last, best)
        waited = len(history) - 1 - _best(history)
        reason = f"held-out pass rate {rate:.1%}, round {best.round} had {_percent(best.report.pass_rate)}"
        evidence = {"pass_rate": rate, "champion_round": best.round, "rounds_without_gain": waited}
        if gain is not None:
            bounds = intervals.widened(gain, last.round or 1)
            evidence |= {"gain": gain.value, "gain_low": bounds.low, "gain_high": bounds.high}
            if bounds.high < self.worthwhile_gain:
                says = f"{reason}: even the upper bound of the gain, {_points(bounds.high)}, is below the worthwhile"
                return self.say(True, f"{says} {_points(self.worthwhile_gain)}", **evidence)
            reason += f" (gain {_points(gain.value)}, could be {_points(bounds.low)} to {_points(bounds.high)})"
        if waited >= self.patience:
            return self.say(True, f"{reason}: {_count(waited, 'round')} without a better policy", **evidence)
        return self.say(False, reason, **evidence)


def _gain_since(last: RoundEvidence, best: RoundEvidence) -> Estimate | None:
    """The gain on the champion so far, paired where it was measured so."""
    if _value(last.gain) is not None:
        return last.gain
    return _gain_since_start(last, best) if best.round == 0 else _unpaired(last, best)


def _gain_since_start(last: RoundEvidence, start: RoundEvidence) -> Estimate | None:
    """The gain on the start policy, paired where it was measured so."""
    return last.report.gain if _value(last.report.gain) is not None else _unpaired(last, start)


def _unpaired(last: RoundEvidence, best: RoundEvidence) -> Estimate | None:
    """Difference of two rates as if they knew nothing of each other: wider than the paired interval."""
    if last.report.pass_rate is None or best.report.pass_rate is None:
        return None
    return intervals.difference(last.report.pass_rate, best.report.pass_rate)


@rules.register("kl_budget", bars=True)
class KlBudget(Rule):
    """The policy has moved too far from the start: KL, nats a sequence. A policy over it is never champion."""

    rule: str = "kl_budget"
    nats: Amount = 60.0

    def __call__(self, history: Sequence[RoundEvidence]) -> Decision:
        kl = _value(history[-1].report.kl_sequence)
        if kl is None:
            return self.say(False, "KL from the start was not measured")
        over = kl > self.nats
        reason = (
            f"KL from the start {kl:.3g} nats a sequence, {'over' if over else 'within'} the budget of {self.nats:g}"
        )
        return self.say(over, reason, kl=kl, budget=self.nats)


@rules.register("reward_hacking", bars=True)
class RewardHacking(Rule):
    """The pass rate rises while measures that were never rewarded fall, against the start policy.

    The pass rate counts as risen when the interval of its gain is above zero. A measure counts as fallen when it has
    lost more than its share of the start's value, and the interval of the difference says so too (distinct-2 has none).
    Length falls fairly where prompts ask for short answers: its share is the widest. A policy that hacks is never
    champion.
    """

    rule: str = "reward_hacking"
    relevance: Share = 0.35
    """Loss of relevance to the prompt (nats a token under the start model) that counts, as a share of the start's."""
    length: Share = 0.5
    """Loss of mean length in tokens that counts, as a share of the start's."""
    distinct_2: Share = 0.3
    """Loss of distinct word pairs that counts, as a share of the start's."""
    measures: Annotated[int, BeforeValidator(_number_only), Field(ge=1, le=3)] = 1
    """How many of the three must fall."""

    def __call__(self, history: Sequence[RoundEvidence]) -> Decision:
        start, last = history[0].report, history[-1].report
        gain = _gain_since_start(history[-1], history[0])
        if len(history) < 2 or gain is None or math.isnan(gain.value):
            return self.say(False, "no gain to question yet")
        changes = {name: _change(name, last, start) for name in ("relevance", "tokens", "distinct_2")}
        shares = {"relevance": self.relevance, "tokens": self.length, "distinct_2": self.distinct_2}
        fallen = [name for name, share in shares.items() if _has_fallen(name, last, start, share)]
        stop = gain.low > 0 and len(fallen) >= self.measures
        reason = f"pass rate {_points(gain.value)} since the start; {_tell(changes)}"
        if stop:
            reason += f": what was never rewarded falls ({', '.join(_WORDS[name] for name in fallen)})"
        return self.say(stop, reason, gain=gain.value, gain_low=gain.low, fallen=fallen, changes=changes)


_WORDS = {"relevance": "relevance", "tokens": "length", "distinct_2": "distinct-2"}


def _measure(name: str, report: PolicyReport) -> Estimate | None:
    value = getattr(report, name)
    return Estimate(value, value, value) if isinstance(value, float) else value


def _change(name: str, last: PolicyReport, start: PolicyReport) -> float | None:
    """The last value as a change of the start's: -0.25 is a quarter lost. None: not measured, or nothing to lose."""
    now, then = _value(_measure(name, last)), _value(_measure(name, start))
    return None if now is None or then is None or then <= 0 else now / then - 1


def _has_fallen(name: str, last: PolicyReport, start: PolicyReport, share: float) -> bool:
    """Has more than `share` of the start's value gone, by the upper bound of what is left over?"""
    now, then = _measure(name, last), _measure(name, start)
    change = _change(name, last, start)
    if now is None or then is None or change is None:
        return False
    return change < -share and intervals.difference(now, then, 1 - share).high < 0


def _tell(changes: Mapping[str, float | None]) -> str:
    return ", ".join(
        f"{_WORDS[name]} {'not measured' if change is None else f'{change:+.0%}'}" for name, change in changes.items()
    )


@rules.register("label_starvation")
class LabelStarvation(Rule):
    """Ties and failures leave too few preferences to train on."""

    rule: str = "label_starvation"
    minimum: Positive = 8

    def __call__(self, history: Sequence[RoundEvidence]) -> Decision:
        last = history[-1]
        if last.round == 0:
            return self.say(False, "nothing is labelled in round 0")
        few = last.preferences < self.minimum
        reason = (
            f"{_count(last.preferences, 'preference')}, {'fewer than' if few else 'at least'} {self.minimum} are needed"
        )
        return self.say(few, reason, preferences=last.preferences, minimum=self.minimum)


# --------------------------------------------------------------------------------------------------- composition


class All(BaseModel):
    """Stops when every one of its rules would."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    all: tuple[SerializeAsAny[Annotated[Rule, BeforeValidator(lambda value: _rule(value))]], ...] = Field(min_length=1)

    def __call__(self, history: Sequence[RoundEvidence]) -> Decision:
        """The decisions of its rules as one."""
        said = [rule(history) for rule in self.all]
        name = " and ".join(decision.rule for decision in said)
        evidence = {decision.rule: dict(decision.evidence) for decision in said}
        return Decision(all(d.stop for d in said), name, "; ".join(d.reason for d in said), evidence)


def _rule(value: Any) -> Any:
    """A mapping {rule: name, settings} as that rule's model; pydantic keeps the keys of its faults."""
    if isinstance(value, Rule):
        return value
    if not isinstance(value, Mapping) or not isinstance(value.get("rule"), str):
        raise ValueError(f"a rule is a mapping like {{rule: kl_budget, nats: 40}}. Known: {', '.join(rules.names())}")
    try:
        kind = rules.get(value["rule"])
    except FactoryError as fault:
        raise ValueError(fault.what) from fault
    return kind.model_validate(value)


def _rule_or_all(value: Any) -> Any:
    if isinstance(value, All) or (isinstance(value, Mapping) and "all" in value):
        return All.model_validate(value)
    return _rule(value)


def _defaults() -> tuple[Rule | All, ...]:
    return NoGain(), KlBudget(), RewardHacking(), LabelStarvation()


class StopConfig(BaseModel):
    """When a run ends: after `max_rounds`, or as soon as one of `any` says so.

    An entry of `any` is a rule, `{rule: name, ...settings}`, or `{all: [rules]}`, which stops when all of them would.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    max_rounds: Positive = 2
    """Rounds of training at most; round 0, the evaluation of the start, does not count."""
    any: tuple[SerializeAsAny[Annotated[Rule | All, BeforeValidator(_rule_or_all)]], ...] = Field(
        default_factory=_defaults
    )
    """The other rules; by default no_gain, kl_budget, reward_hacking and label_starvation with their own defaults."""

    @property
    def min_preferences(self) -> int:
        """Preferences below which a round has nothing to train on."""
        return max((rule.minimum for rule in self.leaves() if isinstance(rule, LabelStarvation)), default=1)

    def leaves(self) -> Iterator[Rule]:
        """Every rule, those within `all` too."""
        for entry in self.any:
            yield from entry.all if isinstance(entry, All) else (entry,)


def decide(history: Sequence[RoundEvidence], config: StopConfig) -> Decision:
    """Stop after the last round of `history`? The first rule that says so is the decision's; others that agree stand in
    its evidence under "also". Going on, the reason is what every rule saw."""
    marked = flagged(history, config)
    checks: list[StopRule] = [*config.any, MaxRounds(rounds=config.max_rounds)]
    said = [check(marked) for check in checks]
    firing = [decision for decision in said if decision.stop]
    if not firing:
        seen = {decision.rule: dict(decision.evidence) for decision in said}
        return Decision(False, "", "; ".join(decision.reason for decision in said), seen)
    first, *rest = firing
    also = {decision.rule: decision.reason for decision in rest}
    return dataclasses.replace(first, evidence={**first.evidence, "also": also} if also else first.evidence)


StopRule = Callable[[Sequence[RoundEvidence]], Decision]


def champion(history: Sequence[RoundEvidence], config: StopConfig | None = None) -> int:
    """The round (index into `history`) with the best held-out pass rate among those that no rule bars; ties and
    unmeasured rates go to the earlier. Where all are barred, round 0: the start policy."""
    return _best(history if config is None else flagged(history, config))


def flagged(history: Sequence[RoundEvidence], config: StopConfig) -> list[RoundEvidence]:
    """The history with each round's `flags`: the barring rules that would have fired on it."""
    barring = [rule for rule in config.leaves() if rules.facts(rule.rule).get("bars")]
    return [
        dataclasses.replace(e, flags=tuple(rule.rule for rule in barring if rule(history[: i + 1]).stop))
        for i, e in enumerate(history)
    ]


def _best(history: Sequence[RoundEvidence]) -> int:
    best, best_rate = 0, -math.inf
    for i, evidence in enumerate(history):
        rate = _value(evidence.report.pass_rate)
        if rate is not None and not evidence.flags and rate > best_rate:
            best, best_rate = i, rate
    return best


# --------------------------------------------------------------------------------------------------------- words


def _plain(value: Any) -> Any:
    """NaN has no place in JSON: an unknown bound is None."""
    return None if isinstance(value, float) and math.isnan(value) else value


def _value(estimate: Estimate | None) -> float | None:
    return None if estimate is None or math.isnan(estimate.value) else estimate.value


def _percent(estimate: Estimate | None) -> str:
    value = _value(estimate)
    return "none measured" if value is None else f"{value:.1%}"


def _points(gain: float) -> str:
    return f"{100 * gain:+.1f} points"


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}s"
