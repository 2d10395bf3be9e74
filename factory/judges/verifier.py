"""The verifier: a judge that is a program. It scores an answer by the share of its prompt's constraints that are met.

An answer below the floor on substance (`factory/constraints/substance.py`) scores 0, whatever it meets; `detail` keeps
both, so that a reading of the raw share stays possible.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from factory import constraints
from factory.faults import ConfigError
from factory.judges import votes
from factory.schema import Candidate, Judgment, Matchup, Prompt, Reading

READER = "2"
"""Version of what the constraints and the floor on substance mean."""


class VerifierJudge:
    """Pointwise, instant and deterministic. `least` is the number of content words that the floor asks for."""

    kind: Literal["pointwise", "pairwise"] = "pointwise"

    def __init__(self, name: str = "verifier", *, least: int = constraints.CONTENT_WORDS) -> None:
        self.name = name
        self.least = least
        floor = "" if least == constraints.CONTENT_WORDS else f", least {least}"
        self.reader = f"{READER}{floor}"  # another floor is another reading: what is held is not taken for it

    def vote(self, matchups: Iterable[Matchup]) -> Iterator[Judgment]:
        """One judgment for each candidate of each matchup (of a pair: a, then b)."""
        for prompt, candidate, canary in votes.answers(matchups):
            yield votes.judgment(self, candidate, self.read(prompt, candidate), canary=canary)

    def read(self, prompt: Prompt, candidate: Candidate) -> Reading:
        """What the constraints say of the answer: a score on 0 to 1 with its detail, or why there is none."""
        if candidate.failure:
            return Reading(failure="candidate_failed")
        if not prompt.constraints:
            return Reading(failure="no_constraints")
        try:
            verdict = constraints.verify(prompt.constraints, candidate.text, prompt, least=self.least)
        except ConfigError as error:
            return Reading(failure="bad_constraints", detail={"faults": list(error.faults)})
        score = verdict.share if verdict.substance.met else 0.0
        return Reading(score=score, score_low=0.0, score_high=1.0, detail=_detail(prompt.constraints, verdict))


def _detail(wanted: Iterable[Mapping[str, Any]], verdict: constraints.Verdict) -> dict[str, Any]:
    by_kind: dict[str, list[bool]] = {}
    for constraint, check in zip(wanted, verdict.checks, strict=True):
        by_kind.setdefault(constraint["kind"], []).append(check.met)
    return {
        "met": [c.met for c in verdict.checks],
        "why": [c.why[:200] for c in verdict.checks],
        "by_kind": {kind: sum(met) / len(met) for kind, met in by_kind.items()},
        "share": verdict.share,
        "all_met": verdict.all_met,
        "substance": verdict.substance.met,
        "substance_why": verdict.substance.why,
    }
