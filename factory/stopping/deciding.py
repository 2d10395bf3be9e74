"""Rules put together: any of them, all of them, and the champion that they leave."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny

from factory.faults import FactoryError
from factory.schema import Decision
from factory.stopping.drift import Degeneration, DiversityCollapse, LengthDrift
from factory.stopping.evidence import RoundEvidence, best_of
from factory.stopping.gain import NoGain
from factory.stopping.hacking import RewardHacking
from factory.stopping.limits import KlBudget, LabelStarvation, MaxRounds
from factory.stopping.rules import Positive, Rule, rules

StopRule = Callable[[Sequence[RoundEvidence]], Decision]


class All(BaseModel):
    """Stops when every one of its rules would."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    all: tuple[SerializeAsAny[Annotated[Rule | Either, BeforeValidator(lambda value: _entry(value))]], ...] = Field(
        min_length=1
    )

    def __call__(self, history: Sequence[RoundEvidence]) -> Decision:
        """The decisions of its rules as one."""
        said = [rule(history) for rule in self.all]
        name = " and ".join(decision.rule for decision in said)
        evidence = {decision.rule: dict(decision.evidence) for decision in said}
        return Decision(all(d.stop for d in said), name, "; ".join(d.reason for d in said), evidence)

    def leaves(self) -> Iterator[Rule]:
        """Every rule within."""
        return _leaves(self.all)


class Either(BaseModel):
    """Stops when one of its rules would: for use within `all`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    any: tuple[SerializeAsAny[Annotated[Rule | All, BeforeValidator(lambda value: _entry(value))]], ...] = Field(
        min_length=1
    )

    def __call__(self, history: Sequence[RoundEvidence]) -> Decision:
        """The decisions of its rules as one; when it stops, by the names of those that say so."""
        said = [rule(history) for rule in self.any]
        speaking = [decision for decision in said if decision.stop] or said
        name = " or ".join(decision.rule for decision in speaking)
        evidence = {decision.rule: dict(decision.evidence) for decision in said}
        return Decision(any(d.stop for d in said), name, "; ".join(d.reason for d in speaking), evidence)

    def leaves(self) -> Iterator[Rule]:
        """Every rule within."""
        return _leaves(self.any)


Entry = Rule | All | Either


def _leaves(entries: Sequence[Entry]) -> Iterator[Rule]:
    for entry in entries:
        yield from (entry,) if isinstance(entry, Rule) else entry.leaves()


def _entry(value: Any) -> Any:
    """A mapping {rule: name, settings}, {all: [...]} or {any: [...]} as its model; pydantic keys its faults."""
    if isinstance(value, Entry):
        return value
    if isinstance(value, Mapping):
        if "all" in value:
            return All.model_validate(value)
        if "any" in value:
            return Either.model_validate(value)
    if not isinstance(value, Mapping) or not isinstance(value.get("rule"), str):
        raise ValueError(f"a rule is a mapping like {{rule: kl_budget, nats: 40}}. Known: {', '.join(rules.names())}")
    try:
        kind = rules.get(value["rule"])
    except FactoryError as fault:
        raise ValueError(fault.what) from fault
    return kind.model_validate(value)


All.model_rebuild()


def _defaults() -> tuple[Entry, ...]:
    return (
        NoGain(), KlBudget(), RewardHacking(), LengthDrift(), DiversityCollapse(), Degeneration(), LabelStarvation(),
    )  # fmt: skip


class StopConfig(BaseModel):
    """When a run ends: after `max_rounds`, or as soon as one of `any` says so.

    An entry of `any` is a rule, `{rule: name, ...settings}`, or `{all: [rules]}`, which stops when all of them would;
    within it `{any: [rules]}` stands for one of several.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    max_rounds: Positive = 2
    """Rounds of training at most; round 0, the evaluation of the start, does not count."""
    any: tuple[SerializeAsAny[Annotated[Rule | All | Either, BeforeValidator(_entry)]], ...] = Field(
        default_factory=_defaults
    )
    """The other rules; by default no_gain, kl_budget, reward_hacking, length_drift, diversity_collapse, degeneration
    and label_starvation with their own defaults."""

    @property
    def min_preferences(self) -> int:
        """Rows (preferences or labels) below which a round has nothing to train on."""
        return max((rule.minimum for rule in self.leaves() if isinstance(rule, LabelStarvation)), default=1)

    def leaves(self) -> Iterator[Rule]:
        """Every rule, those within `all` too."""
        return _leaves(self.any)


def decide(history: Sequence[RoundEvidence], config: StopConfig) -> Decision:
    """Stop after the last round of `history`? The first rule that says so is the decision's; others that agree stand in
    its evidence under "also". Going on, the reason is what every rule saw."""
    return decide_marked(flagged(history, config), config)


def decide_marked(marked: Sequence[RoundEvidence], config: StopConfig) -> Decision:
    """`decide` for a history whose rounds have their flags already."""
    checks: list[StopRule] = [*config.any, MaxRounds(rounds=config.max_rounds)]
    said = [check(marked) for check in checks]
    firing = [decision for decision in said if decision.stop]
    if not firing:
        seen = {decision.rule: dict(decision.evidence) for decision in said}
        return Decision(False, "", "; ".join(decision.reason for decision in said), seen)
    first, *rest = firing
    also = {decision.rule: decision.reason for decision in rest}
    return dataclasses.replace(first, evidence={**first.evidence, "also": also} if also else first.evidence)


def champion(history: Sequence[RoundEvidence], config: StopConfig | None = None) -> int:
    """The round (index into `history`) that is best by the measure that decides, among those that no rule bars; ties
    and unmeasured rounds go to the earlier. Where all are barred, round 0: the start policy."""
    return best_of(history if config is None else flagged(history, config))


def flagged(history: Sequence[RoundEvidence], config: StopConfig) -> list[RoundEvidence]:
    """The history with each round's `flags`: the barring rules that would have fired on it. Each round is read with the
    flags of those before it, so that a champion is one that no rule bars."""
    marked: list[RoundEvidence] = []
    for evidence in history:
        marked.append(mark(marked, evidence, config))
    return marked


def mark(marked: Sequence[RoundEvidence], evidence: RoundEvidence, config: StopConfig) -> RoundEvidence:
    """A round with its flags, given the rounds before it with theirs."""
    barring = (rule for rule in config.leaves() if rules.facts(rule.rule).get("bars"))
    seen = [*marked, dataclasses.replace(evidence, flags=())]
    flags = tuple(dict.fromkeys(rule.rule for rule in barring if rule.check(seen).stop))
    return dataclasses.replace(evidence, flags=flags)
