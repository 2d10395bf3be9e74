"""The constitutional judge: AI comparisons by principles drawn from a constitution (Bai et al. 2022, arXiv 2212.08073,
section 4.1).

For every pair of answers one principle (or some, or all) is drawn by seed and weight, and the pairwise judge asks by it
in both orders; the labels are soft, p_a and not a winner. Drawing over many principles made that paper's preference
model more robust than one for all. After reasoning a model is far too sure of itself, so that its probabilities are
clamped to 40-60% there (section 4.3), which may be set otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from factory.judges import examples as few_shot, options, rubric
from factory.judges.pairwise import Form, PairwiseJudge, Reasoning
from factory.schema import Ask, Completion, Matchup, Reading, digest

CLAMP = 0.4
"""Least probability of either side after reasoning."""


@dataclass
class ConstitutionalJudge:
    """Asks which answer is better by `principles_each` principles ("all": by every one, each counting by its weight),
    drawn for each pair by `seed`, from those of `constitution` (or those named in `principles`).

    The same two answers to the same prompt meet the same principles, in both orders and in every run. `clamp`: p_a is
    kept from `clamp` to 1 - `clamp` (0: as it is; by default 0.4 where the judge reasons first, else 0). The other
    options are the pairwise judge's.
    """

    name: str = "constitutional"
    constitution: str = "helpful-honest-harmless"
    principles: Sequence[str] | str = ()
    principles_each: int | Literal["all"] = 1
    seed: int = 0
    clamp: float | None = None
    ties: bool = False
    prefix: str = "The better answer is ("
    min_mass: float = 0.5
    max_tokens: int | None = None
    form: Form = "token"
    reasoning: Reasoning = "none"
    reasoning_tokens: int = 256
    examples: str | Sequence[Mapping[str, Any]] = ()
    reference: bool = False
    reader: str = field(default=f"{PairwiseJudge.reader}.1", init=False)
    kind: Literal["pointwise", "pairwise"] = field(default="pairwise", init=False)

    def __post_init__(self) -> None:
        """ConfigError or FactoryError for every option that is wrong, before anything is asked."""
        each, least = self.principles_each, self.clamp
        clamped = least is None or (isinstance(least, int | float) and not isinstance(least, bool) and 0 <= least < 0.5)
        options.check(
            self.name,
            {f"principles_each: must be a whole number from 1 on, or all; not {each!r}": _is_count(each)}
            | {f"seed: must be a whole number, not {self.seed!r}": _is_whole(self.seed)}
            | {f"clamp: must be a number from 0 to below 0.5, not {least!r}": clamped},
        )
        _ = self._asker

    @cached_property
    def _asker(self) -> PairwiseJudge:
        """The pairwise judge with all principles."""
        return PairwiseJudge(
            name=self.name,
            constitution=self.constitution,
            principles=self.principles,
            ties=self.ties,
            prefix=self.prefix,
            min_mass=self.min_mass,
            max_tokens=self.max_tokens,
            form=self.form,
            reasoning=self.reasoning,
            reasoning_tokens=self.reasoning_tokens,
            examples=self.examples,
            reference=self.reference,
        )

    @cached_property
    def _askers(self) -> Mapping[str, PairwiseJudge]:
        """The pairwise judge of each principle, with the examples that are about it."""
        shown = few_shot.load(self.examples) if self.examples else ()
        return {
            name: replace(
                self._asker,
                principles=(name,),
                examples=[e.model_dump() for e in shown if e.principle in (None, name)],
            )
            for name in self._known
        }

    @cached_property
    def _known(self) -> Mapping[str, rubric.Principle]:
        found = rubric.load(self.constitution).choose(self.principles, "comparison")
        return {principle.name: principle for principle in found}

    @property
    def _least(self) -> float:
        if self.clamp is not None:
            return self.clamp
        return CLAMP if self.reasoning == "first" else 0.0

    def drawn(self, matchup: Matchup) -> tuple[str, ...]:
        """Names of the principles by which this pair is compared."""
        if self.principles_each == "all":
            return tuple(self._known)
        texts = sorted([matchup.a.text, matchup.b.text if matchup.b else ""])
        pair = digest(matchup.prompt.key, texts)
        return tuple(p.name for p in rubric.draw(list(self._known.values()), self.principles_each, self.seed, pair))

    def asks(self, matchup: Matchup, earlier: Sequence[Reading] = ()) -> list[Ask]:
        """Both orders for each principle drawn; after reasoning, the verdict that it leads to."""
        if not earlier:
            return [ask for name in self.drawn(matchup) for ask in self._askers[name].asks(matchup)]
        told = {name: [r for r in earlier if r.aspect == name] for name in self.drawn(matchup)}
        return [ask for name, said in told.items() if said for ask in self._askers[name].asks(matchup, said)]

    def read(self, ask: Ask, completion: Completion) -> list[Reading]:
        """The pairwise judge's reading, p_a clamped. A principle that was drawn has had its weight in the draw."""
        return [self._soft(reading) for reading in self._askers[ask.aspect].read(ask, completion)]

    def _soft(self, reading: Reading) -> Reading:
        detail = dict(reading.detail or {})
        if self.principles_each != "all":
            detail.pop("weight", None)
        if reading.p_a is None:
            return replace(reading, detail=detail)
        p_a = min(max(reading.p_a, self._least), 1 - self._least)
        if p_a != reading.p_a:
            detail["unclamped"] = round(reading.p_a, 6)
        return replace(reading, p_a=p_a, detail=detail)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_count(value: object) -> bool:
    return value == "all" or (_is_whole(value) and isinstance(value, int) and value >= 1)
