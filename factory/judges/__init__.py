"""Judges give judgments. Each is a module of its own, imported when it is first used.

A program or a person implements `vote`. An LLM judge is pure: `asks` says what to ask, `read` says what an answer
means, and the runner in `factory/labelling/` does the asking, the order swapping, the retries and the storing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, NamedTuple, Protocol

from factory.registry import Registry
from factory.schema import Ask, Completion, Judgment, Matchup, Reading


class Judge(Protocol):
    """Anything that gives judgments."""

    name: str
    kind: Literal["pointwise", "pairwise"]

    def vote(self, matchups: Iterable[Matchup]) -> Iterator[Judgment]:
        """One or more judgments for every matchup; a failure is a judgment with `failure` set. Only a judge whose
        attribute `partial` is true may be silent: it was not asked about everything."""


class CannotAsk(Exception):  # noqa: N818 - it is a reading of the matchup, not an error of the program
    """Raised by `asks` where a matchup lacks what the judge needs: it becomes a judgment with the failure `kind`."""

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(why)
        self.kind = kind


class Effort(NamedTuple):
    """What one matchup costs at most: calls of the model, and tokens of all their answers."""

    calls: int
    tokens: int


class LLMJudge(Protocol):
    """A judge that asks a model. No I/O: the runner does that."""

    name: str
    kind: Literal["pointwise", "pairwise"]
    reader: str  # version of `read`: a change re-reads kept calls, it does not pay again

    def asks(self, matchup: Matchup, earlier: Sequence[Reading] = ()) -> list[Ask]:
        """What to ask about the matchup; with `earlier` readings, the follow-up questions (none: done). CannotAsk where
        the matchup lacks what the judge needs."""

    def read(self, ask: Ask, completion: Completion) -> list[Reading]:
        """What the answer means. Never raises, never guesses. A reading that says nothing yet (no verdict, no score, no
        failure: reasoning, say) is no judgment; it is among the `earlier` readings of the follow-up."""


# asks: it asks a model through an engine. model, reference, file: it has an option of that name. whose: the model that
# judges in a recipe that does not say. pairs: it compares two answers and scores none
judges: Registry[Callable[..., Judge | LLMJudge]] = Registry("judge")
judges.add("verifier", "factory.judges.verifier:VerifierJudge", asks=False)
judges.add("words", "factory.judges.words:WordsJudge", asks=False)
judges.add("pairwise", "factory.judges.pairwise:PairwiseJudge", asks=True, pairs=True)
judges.add("rating", "factory.judges.rating:RatingJudge", asks=True)
judges.add("constitutional", "factory.judges.constitutional:ConstitutionalJudge", asks=True, pairs=True)
judges.add("reward_model", "factory.judges.reward_model:RewardModelJudge", asks=False, model=True)
judges.add("implicit", "factory.judges.implicit:ImplicitJudge", asks=False, model=True, reference=True, whose="policy")
judges.add("self_reward", "factory.judges.self_reward:SelfRewardJudge", asks=True, whose="policy")
judges.add("meta_judge", "factory.judges.meta_judge:meta_judge", asks=True, kind="judgment")
judges.add("rubric", "factory.judges.criteria:RubricJudge", asks=True)
judges.add("human", "factory.judges.human:HumanJudge", asks=False, file=True)
