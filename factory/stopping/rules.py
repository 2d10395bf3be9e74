"""What a stopping rule is: a frozen model of its settings, called with the evidence so far."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from factory.registry import Registry
from factory.schema import Decision, Estimate
from factory.stopping.evidence import RoundEvidence, value_of


def number_only(value: Any) -> Any:
    """A yes or no is no number, whatever YAML makes of it."""
    if isinstance(value, bool):
        raise ValueError("a number is wanted, not yes/no (YAML reads a bare yes, no, on and off as true or false)")
    return value


Positive = Annotated[int, BeforeValidator(number_only), Field(ge=1)]
Amount = Annotated[float, BeforeValidator(number_only), Field(gt=0)]
Share = Annotated[float, BeforeValidator(number_only), Field(ge=0, le=1)]
Multiple = Annotated[float, BeforeValidator(number_only), Field(gt=1)]


class Rule(BaseModel):
    """Settings of one rule; calling it with the history (never empty) gives its word on the last round."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    rule: str
    lasting: Positive = 1
    """Rounds in a row on which it must say stop before it stops the run; a policy that it bars is barred at once."""

    def check(self, history: Sequence[RoundEvidence]) -> Decision:
        """Does the last of `history` speak for stopping?"""
        raise NotImplementedError

    def __call__(self, history: Sequence[RoundEvidence]) -> Decision:
        """Stop after the last of `history`?"""
        said = self.check(history)
        if not said.stop or self.lasting == 1:
            return said
        earlier = range(max(len(history) - self.lasting + 1, 1), len(history))
        said_so = (self.check(history[:end]).stop for end in reversed(earlier))
        rounds = 1 + sum(1 for _ in takewhile(bool, said_so))
        reason = f"{said.reason}; {count(rounds, 'round')} in a row of the {self.lasting} that it takes"
        return Decision(rounds >= self.lasting, said.rule, reason, {**said.evidence, "rounds_in_a_row": rounds})

    def say(self, stop: bool, reason: str, **evidence: Any) -> Decision:
        """A decision in this rule's name."""
        return Decision(stop, self.rule, reason, {name: plain(value) for name, value in evidence.items()})


rules: Registry[type[Rule]] = Registry("stopping rule")


# ------------------------------------------------------------------------------------------------------------- words


def plain(value: Any) -> Any:
    """NaN has no place in JSON: an unknown bound is None."""
    if isinstance(value, Estimate):
        return [plain(bound) for bound in value]
    if isinstance(value, Mapping):
        return {name: plain(each) for name, each in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def percent(estimate: Estimate | None) -> str:
    """A rate in words."""
    value = value_of(estimate)
    return "none measured" if value is None else f"{value:.1%}"


def points(gain: float) -> str:
    """A difference of rates in words."""
    return f"{100 * gain:+.1f} points"


def count(n: int, what: str) -> str:
    """A number of things in words."""
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}s"
