"""A reading as a judgment, for judges that vote by themselves: programs, models' scores and people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, Protocol

from factory.schema import Candidate, Judgment, Matchup, Prompt, Reading, digest, now


class Voter(Protocol):
    """What is taken from the judge."""

    name: str
    kind: Literal["pointwise", "pairwise"]

    @property
    def reader(self) -> str:
        """Version of what its readings mean."""


def answers(matchups: Iterable[Matchup]) -> Iterator[tuple[Prompt, Candidate, str | None]]:
    """Each candidate of each matchup (of a pair: a, then b) with its prompt, and the canary that it is, if it is."""
    for matchup in matchups:
        stand_in = matchup.b or matchup.a
        for candidate in filter(None, (matchup.a, matchup.b)):
            yield matchup.prompt, candidate, matchup.canary if candidate is stand_in else None


def judgment(
    judge: Voter, a: Candidate, reading: Reading, *, b: Candidate | None = None, model: str = "",
    canary: str | None = None,
) -> Judgment:  # fmt: skip
    """The row for what `judge` says of `a`, or of the pair `a`, `b`. Its key is the same for the same reading."""
    other = b.key if b else None
    return Judgment(
        key=digest(a.run, a.round, judge.name, a.key, other, None, reading.aspect, None, judge.reader),
        run=a.run,
        round=a.round,
        judge=judge.name,
        judge_model=model,
        kind=judge.kind,
        prompt_key=a.prompt_key,
        candidate_a=a.key,
        candidate_b=other,
        aspect=reading.aspect,
        verdict=reading.verdict,
        p_a=reading.p_a,
        score=reading.score,
        score_low=reading.score_low,
        score_high=reading.score_high,
        detail=reading.detail,
        canary=canary is not None,
        canary_name=canary,
        failure=reading.failure,
        reader=judge.reader,
        at=now(),
    )
