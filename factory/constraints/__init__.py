"""Constraints that a program can check: one registry of kinds, one function that checks an answer against a prompt's.

A constraint is a mapping {"kind": name, ...parameters}, as kept in prompts.constraints. Checking never raises on any
text; a constraint that is itself wrong is a ConfigError with all its faults.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from factory.constraints import correct, programs  # their kinds enter the registry
from factory.constraints.answer import Answer
from factory.constraints.kinds import KINDS, Check, Kind
from factory.constraints.parameters import faults_of
from factory.constraints.substance import CONTENT_WORDS, substance
from factory.faults import ConfigError, FactoryError
from factory.schema import Prompt

if TYPE_CHECKING:
    from factory.execution import Runner

__all__ = [
    "CONTENT_WORDS", "KINDS", "Answer", "Check", "Kind", "Verdict", "check", "correct", "faults", "programs",
    "runs_code", "substance", "verify",
]  # fmt: skip


class Verdict(NamedTuple):
    """What an answer is worth: one check per constraint, in their order, and the floor on substance."""

    checks: list[Check]
    substance: Check

    @property
    def share(self) -> float:
        """The share of constraints met, whatever the substance."""
        return sum(c.worth for c in self.checks) / len(self.checks) if self.checks else 1.0

    @property
    def failure(self) -> str | None:
        """The kind of failure that keeps the answer from a verdict; None: there is a verdict."""
        return next((c.failure for c in self.checks if c.failure), None)

    @property
    def all_met(self) -> bool:
        """Every constraint is met by an answer of substance."""
        return self.substance.met and all(c.met for c in self.checks)


def check(
    constraint: Mapping[str, Any], text: str, prompt: Prompt | None = None, *, runner: Runner | None = None
) -> Check:
    """Does the text meet this one constraint? ConfigError when the constraint is wrong."""
    _refuse([constraint])
    return _check(constraint, Answer(text, prompt), runner)


def verify(
    constraints: Sequence[Mapping[str, Any]],
    text: str,
    prompt: Prompt | None = None,
    *,
    least: int = CONTENT_WORDS,
    runner: Runner | None = None,
) -> Verdict:
    """Every constraint and the floor on substance (`least` content words), which is not asked where a constraint checks
    what the answer says. `runner` runs the code of constraints that have some; by default one that isolates it.

    ConfigError when a constraint is wrong; FactoryError when code cannot be isolated here.
    """
    _refuse(constraints)
    answer = Answer(text, prompt)
    settled = any(KINDS.get(c["kind"]).settles for c in constraints)
    floor = Check(True, "what it says is checked") if settled else substance(answer, constraints, least)
    return Verdict([_check(c, answer, runner) for c in constraints], floor)


def runs_code(constraints: Any) -> bool:
    """Is code run to check one of these constraints?"""
    kinds = [c.get("kind") for c in constraints or () if isinstance(c, Mapping)]
    return any(kind in KINDS.names() and KINDS.get(kind).runs for kind in kinds)


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


def _check(constraint: Mapping[str, Any], answer: Answer, runner: Runner | None) -> Check:
    found = KINDS.get(constraint["kind"])
    values = {name: p.default for name, p in found.parameters.items()}
    values |= {name: constraint[name] for name in found.parameters if name in constraint}
    if found.runs:
        values["runner"] = runner
    return found.test(answer, **values)
