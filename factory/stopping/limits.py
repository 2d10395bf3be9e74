"""Rules that are limits: rounds, budgets, the distance from the start, and enough data to train on."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import model_validator

from factory.schema import Decision
from factory.stopping.evidence import RoundEvidence, value_of
from factory.stopping.rules import Amount, Positive, Rule, count, rules


@rules.register("max_rounds")
class MaxRounds(Rule):
    """So many rounds of training, no more."""

    rule: str = "max_rounds"
    rounds: Positive

    def check(self, history: Sequence[RoundEvidence]) -> Decision:
        """By the number of the last round."""
        done = history[-1].round
        return self.say(done >= self.rounds, f"{done} of at most {count(self.rounds, 'round')} done", rounds=done)


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

    def check(self, history: Sequence[RoundEvidence]) -> Decision:
        """By the sums over all rounds."""
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
        text += f" ({count(unpriced, 'round')} of unknown price not counted)"
    return text


@rules.register("kl_budget", bars=True)
class KlBudget(Rule):
    """The policy has moved too far from the start: KL, nats a sequence. A policy over it is never champion."""

    rule: str = "kl_budget"
    nats: Amount = 60.0

    def check(self, history: Sequence[RoundEvidence]) -> Decision:
        """By the last policy's KL."""
        kl = value_of(history[-1].report.kl_sequence)
        if kl is None:
            return self.say(False, "KL from the start was not measured")
        over = kl > self.nats
        reason = (
            f"KL from the start {kl:.3g} nats a sequence, {'over' if over else 'within'} the budget of {self.nats:g}"
        )
        return self.say(over, reason, kl=kl, budget=self.nats)


@rules.register("label_starvation")
class LabelStarvation(Rule):
    """Ties and failures leave too few rows to train on: preferences, or labels where the training reads those. A method
    whose policy answers prompts itself needs neither."""

    rule: str = "label_starvation"
    minimum: Positive = 8

    def check(self, history: Sequence[RoundEvidence]) -> Decision:
        """By what the last round found."""
        last = history[-1]
        if last.round == 0:
            return self.say(False, "nothing is labelled in round 0")
        if last.trained_on == "prompts":
            return self.say(False, "the policy is trained on its own answers: no rows are needed")
        table = last.trained_on or "preferences"
        counted = last.labels if table == "labels" else last.preferences
        rows = counted if last.rows is None else last.rows
        few = rows < self.minimum
        reason = f"{count(rows, table[:-1])}, {'fewer than' if few else 'at least'} {self.minimum} are needed"
        if few and last.lost:
            most = sorted(last.lost.items(), key=lambda reason: -reason[1])[:3]
            reason += f"; lost to {', '.join(f'{name} ({n:,})' for name, n in most)}"
        return self.say(few, reason, **{table: rows}, minimum=self.minimum, lost=dict(last.lost))
