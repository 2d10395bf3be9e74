"""A judge with a known blind spot: it scores an answer by its number of words and reads nothing of it.

For studies of what such a judge does to a policy, and that the stopping rules catch it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

from factory.judges import options, votes
from factory.schema import Candidate, Judgment, Matchup, Reading

READER = "1"
"""Version of what the score means."""
FULL = 100
"""Words from which an answer has the whole score: our own choice."""


def words_of(text: str) -> int:
    """Words of a text: runs of non-blank characters."""
    return len(text.split())


class WordsJudge:
    """Pointwise, deterministic and instant. full: words from which an answer scores 1; with fewer, their share of it.

    `factory bon` has the count itself under the name `words`, without having it judged.
    """

    kind: Literal["pointwise", "pairwise"] = "pointwise"

    def __init__(self, name: str = "words", *, full: int = FULL) -> None:
        options.check(name, options.count("full", full))
        self.name = name
        self.full = full
        self.reader = READER if full == FULL else f"{READER}, full {full}"

    def vote(self, matchups: Iterable[Matchup]) -> Iterator[Judgment]:
        """One judgment for each candidate of each matchup (of a pair: a, then b)."""
        for _, candidate, canary in votes.answers(matchups):
            yield votes.judgment(self, candidate, self.read(candidate), canary=canary)

    def read(self, candidate: Candidate) -> Reading:
        """The score of the answer, 0 to 1; of one that failed there is none."""
        if candidate.failure:
            return Reading(failure="candidate_failed")
        words = words_of(candidate.text)
        return Reading(score=min(words / self.full, 1.0), score_low=0.0, score_high=1.0, detail={"words": words})
