"""Constraints that a program can check: one registry of kinds, one function that checks an answer against a prompt's.

A constraint is a mapping {"kind": name, ...parameters}, as kept in prompts.constraints. Checking never raises on any
text; a constraint that is itself wrong is a ConfigError with all its faults.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from factory.constraints.answer import Answer
from factory.constraints.kinds import KINDS, Check, Kind
from factory.constraints.parameters import faults_of
from factory.constraints.substance import CONTENT_WORDS, substance
from factory.faults import ConfigError, FactoryError
from factory.schema import Prompt

__all__ = ["CONTENT_WORDS", "KINDS", "Answer", "Check", "Kind", "Verdict", "check", "faults", "substance", "verify"]


class Verdict(NamedTuple):
    """What an answer is worth: one check per constraint, in their order, and the floor on substance."""

    checks: list[Check]
    substance: Check

    @property
    def share(self) -> float:
        """The share of constraints met, whatever the substance."""
        return sum(c.met for c in self.checks) / len(self.checks) if self.checks else 1.0

    @property
    def all_met(self) -> bool:
        """Every constraint is met by an answer of substance."""
        return self.substance.met and all(c.met for c in self.checks)


def check(constraint: Mapping[str, Any], text: str, prompt: Prompt | None = None) -> Check:
    """Does the text meet this one constraint? ConfigError when the constraint is wrong."""
    _refuse([constraint])
    return _check(constraint, Answer(text, prompt))


def verify(
    constraints: Sequence[Mapping[str, Any]], text: str, prompt: Prompt | None = None, *, least: int = CONTENT_WORDS
) -> Verdict:
    """Every constraint and the floor on substance (`least` content words). ConfigError when a constraint is wrong."""
    _refuse(constraints)
    answer = Answer(text, prompt)
    return Verdict([_check(c, answer) for c in constraints], substance(answer, constraints, least))


def faults(constraints: Any) -> list[str]:
    """Every fault of a list of constraints; empty when it is right."""
    if isinstance(constraints, str | Mapping) or not isinstance(constraints, Sequence):
        return [f"constraints must be a list, not {type(constraints).__name__}"]
    return [f"constraint {i}: {fault}" for i, c in enumerate(constraints, 1) for fault in _faults_of_one(c)]


def _faults_of_one(constraint: Any) -> list[str]:
    if not isinstance(constraint, Mapping) or not isinstance(constraint.get("kind"), str):
        return [f'must be a mapping with a "kind", not {constraint!r}']
    try:
        found = KINDS.get(constraint["kind"])
    except FactoryError as error:
        return [error.what]
    given = {name: value for name, value in constraint.items() if name != "kind"}
    return [f"{found.name}: {fault}" for fault in faults_of(given, found.parameters)]


def _refuse(constraints: Any) -> None:
    found = faults(constraints)
    if found:
        raise ConfigError(found, where="prompts.constraints")


def _check(constraint: Mapping[str, Any], answer: Answer) -> Check:
    found = KINDS.get(constraint["kind"])
    defaults = {name: p.default for name, p in found.parameters.items()}
    given = {name: constraint[name] for name in found.parameters if name in constraint}
    return found.test(answer, **{**defaults, **given})
