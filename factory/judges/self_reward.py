"""The self-rewarding judge: a policy scores its own answers by an additive rubric of five points.

Self-Rewarding Language Models (Yuan et al. 2024, arXiv 2401.10020, section 2.2 and figure 2): points from 0 to 5, added
up one step at a time, after a justification that ends in "Score: k"; several judgments of one answer are averaged.
Where the engine shows log-probs, the score is the expected value over the six scores instead: finer, and nothing is
lost to answers that do not end as told. That is the deviation from the paper; `reasoning: written` is the paper's own
form, and what the meta-judge judges (`factory/judges/meta_judge.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, get_args

from factory.judges import Effort, answers, fence, options, rubric, single
from factory.judges.rating import asked, labels_of
from factory.schema import Ask, Completion, Matchup, Message, Messages, Reading, Request, Sampling

Reasoning = Literal["none", "first", "written"]
KEPT = 4_000  # letters of reasoning kept beside a score

_OPENING = "Score the answer to the conversation below by adding up points."
_SCORE = "Reply with the score, one number from {low} to {high}."
_THINK = "First go through the steps in a few sentences. Do not name the score yet."
_WRITE = 'First justify the score in a few sentences. Then end with one line of the form "Score: <{low} to {high}>".'
ENDINGS = ("Score", "Total score", "Final score")


@dataclass
class SelfRewardJudge:
    """Asks the model that wrote the answers for points from 0 to 5.

    `reasoning`: "none" (the score alone, read from the distribution), "first" (a justification, then the score in a
    call of its own, read from the distribution), or "written" (justification and "Score: k" in one text, for an engine
    without log-probs; `samples` of it at `temperature`, each kept, the score their mean). `constitution` holds the
    rubric, which has one rating question. `prefix`, `min_mass`, `max_tokens`, `reasoning_tokens` and `reference` as for
    the pairwise judge.
    """

    name: str = "self_reward"
    constitution: str = "additive-quality"
    reasoning: Reasoning = "none"
    reasoning_tokens: int = 256
    samples: int = 1
    temperature: float = 0.0
    prefix: str = "The score is ("
    min_mass: float = 0.5
    max_tokens: int | None = None
    reference: bool = False
    reader: str = field(default="3", init=False)
    kind: Literal["pointwise", "pairwise"] = field(default="pointwise", init=False)

    def __post_init__(self) -> None:
        """ConfigError or FactoryError for every option that is wrong, before anything is asked."""
        several, warm = self.samples != 1, self.temperature if isinstance(self.temperature, int | float) else -1
        options.check(
            self.name,
            options.choice("reasoning", self.reasoning, get_args(Reasoning))
            | options.count("reasoning_tokens", self.reasoning_tokens)
            | options.count("samples", self.samples)
            | options.count("max_tokens", self.max_tokens, optional=True)
            | options.share("min_mass", self.min_mass)
            | options.flag("reference", self.reference)
            | {
                "samples: more than one needs reasoning: written": not several or self.reasoning == "written",
                "samples: more than one needs a temperature above 0, or all say the same": not several or warm > 0,
                "temperature: must be a number from 0 on": warm >= 0,
                "constitution: must have one principle with a rating question": len(self._rubrics) == 1,
            },
        )

    @cached_property
    def _rubrics(self) -> tuple[rubric.Principle, ...]:
        return rubric.load(self.constitution).choose((), "rating")

    @property
    def _rubric(self) -> rubric.Principle:
        return self._rubrics[0]

    # ------------------------------------------------------------------------------------------------------- asking

    def asks(self, matchup: Matchup, earlier: Sequence[Reading] = ()) -> list[Ask]:
        """The score, or the justification and then the score that follows from it."""
        if not earlier:
            return [self._first(matchup)]
        if self.reasoning == "first" and len(earlier) == 1 and (thought := (earlier[0].detail or {}).get("reasoning")):
            turns = [Message(role="assistant", content=thought), Message(role="user", content=self._form(_SCORE))]
            return [self._score(matchup, [*self._messages(matchup, _THINK), *turns])]
        return []

    @property
    def effort(self) -> Effort:
        """One answer, a justification and a score, or the samples."""
        score, thinking = self.max_tokens or 1, self.reasoning_tokens
        if self.reasoning == "written":
            return Effort(self.samples, self.samples * thinking)
        return Effort(2, score + thinking) if self.reasoning == "first" else Effort(1, score)

    def _first(self, matchup: Matchup) -> Ask:
        if self.reasoning == "none":
            return self._score(matchup, self._messages(matchup, _SCORE))
        thinking = Sampling(temperature=float(self.temperature), max_tokens=self.reasoning_tokens)
        form = _THINK if self.reasoning == "first" else _WRITE
        return Ask(
            matchup,
            Request(messages=self._messages(matchup, form), sampling=thinking, n=self.samples),
            self._rubric.name,
            None,
            {} if self.reasoning == "first" else labels_of(self._rubric),
        )

    def _score(self, matchup: Matchup, messages: Messages) -> Ask:
        labels = labels_of(self._rubric)
        request = Request(
            messages=messages,
            sampling=Sampling(temperature=0.0, max_tokens=self.max_tokens or 1),
            answers=tuple(labels),
            prefix=self.prefix,
        )
        return Ask(matchup, request, self._rubric.name, None, labels)

    def _messages(self, matchup: Matchup, form: str) -> Messages:
        question = [*asked(self._rubric), self._form(form)]
        return single.messages(matchup, _OPENING, question, reference=self.reference)

    def _form(self, form: str) -> str:
        return form.format(low=min(self._rubric.scale), high=max(self._rubric.scale))

    # ------------------------------------------------------------------------------------------------------ reading

    def read(self, ask: Ask, completion: Completion) -> list[Reading]:
        """One reading: the score from 0 to 5, a step of reasoning, or a failure. Samples are aspects of their own, so
        that none replaces another."""
        beside = single.beside(ask.matchup, 1.0, self.reference)
        if not ask.labels:
            return [_step(ask, completion, beside)]
        scale = labels_of(self._rubric)
        suffix = f"/{max(self._rubric.scale)}"
        if self.reasoning != "written":
            said = answers.said(completion, scale, self.min_mass, self.prefix, suffix)
            reasons = ask.request.messages[-2]["content"] if self.reasoning == "first" else ""
            return [single.score(said, scale, ask.aspect, beside | _kept(reasons))]
        said = answers.said_last(completion, scale, ENDINGS, suffix)
        aspect = ask.aspect if self.samples == 1 else f"{ask.aspect} {completion.sample + 1}"
        return [single.score(said, scale, aspect, beside | _kept(said.rest))]


def _step(ask: Ask, completion: Completion, beside: dict[str, Any]) -> Reading:
    """The justification before the score; a failure where there is none. One that was cut is taken as it is."""
    if completion.failure is not None:
        why = {"why": completion.failure.detail[:200]}
        return Reading(aspect=ask.aspect, failure=completion.failure.kind, detail=beside | why)
    thought = fence.clean(completion.text).text.strip() if isinstance(completion.text, str) else ""
    if not thought:
        return Reading(aspect=ask.aspect, failure="no_reasoning", detail=beside | {"why": "an empty text"})
    return Reading(aspect=ask.aspect, detail={"reasoning": thought})


def _kept(reasons: str) -> dict[str, Any]:
    return {"reasoning": reasons[:KEPT]} if reasons else {}
