"""The pairwise judge: a language model says which of two answers is better by a principle, always asked in both orders.

The verdict is read from the distribution over the answer tokens where the engine shows it (arXiv 2503.03064), else from
a text, or a JSON object, that must be exactly one valid verdict. GPT-4 keeps its verdict under a swap about 65% of the
time (MT-Bench, 2306.05685), so that one order alone is no verdict: `factory/verdicts.py` takes both together.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple, get_args

from factory.judges import Effort, answers, examples as few_shot, fence, options, rubric
from factory.schema import Ask, Completion, Matchup, Message, Messages, Reading, Request, Sampling

Side = Literal["a", "b"]
Form = Literal["token", "json"]
Reasoning = Literal["none", "first", "after"]
ORDERS: tuple[Side, Side] = ("a", "b")
_CLOSING = {"(": ")", "[": "]", "*": "**", '"': '"', "'": "'"}
KEPT = 4_000  # letters of reasoning kept beside a verdict

_WITH_REFERENCE = "A reference answer is given. Go by it to tell what is right; it is not one of the two."
_THINK = "First compare the two in a few sentences, point by point. Do not name the better one yet."


class Words(NamedTuple):
    """What is compared, as the judge is told."""

    opening: str
    conversation: str
    side: str  # before the letters A and B


ANSWERS = Words("Compare two answers to the conversation below.", "conversation", "answer")


@dataclass
class PairwiseJudge:
    """Asks, for each principle, which answer is better, once with each answer shown first.

    `constitution` and `principles` say by what (all principles with a comparison question when none is named), each
    counting by its weight. `prefix` is said for the model at the start of its turn, so that the next token is the
    verdict: it should end so that a bare letter follows, as after a bracket, since after a blank most tokenizers expect
    none; "" for an endpoint that cannot. `ties` allows a third answer, C: equally good. `min_mass` is the least
    probability that must be on valid answers. `max_tokens` is 1 for an engine with log-probs; give 8 or so for one that
    only returns text. `form`: "token", or "json" for an engine that has no log-probs and keeps to a JSON schema.
    `reasoning`: "none", "first" (a call in which the model compares, then one for the verdict, which is still read from
    the distribution; one call in JSON), or "after" the verdict, in the same call; at most `reasoning_tokens` long.
    `examples`: a file or a list, see `factory/judges/examples.py`. `reference`: show the prompt's reference answer,
    where it has one.
    """

    name: str = "pairwise"
    constitution: str = "instruction-following"
    principles: Sequence[str] | str = ()
    ties: bool = False
    prefix: str = "The better answer is ("
    min_mass: float = 0.5
    max_tokens: int | None = None
    form: Form = "token"
    reasoning: Reasoning = "none"
    reasoning_tokens: int = 256
    examples: str | Sequence[Mapping[str, Any]] = ()
    reference: bool = False
    reader: str = field(default="4", init=False)
    kind: Literal["pointwise", "pairwise"] = field(default="pairwise", init=False)
    words: Words = field(default=ANSWERS, init=False, repr=False)

    def __post_init__(self) -> None:
        """ConfigError or FactoryError for every option that is wrong, before anything is asked."""
        options.check(
            self.name,
            options.flag("ties", self.ties)
            | options.flag("reference", self.reference)
            | options.share("min_mass", self.min_mass)
            | options.count("max_tokens", self.max_tokens, optional=True)
            | options.choice("form", self.form, get_args(Form))
            | options.choice("reasoning", self.reasoning, get_args(Reasoning))
            | options.count("reasoning_tokens", self.reasoning_tokens),
        )
        shown, reasons, names = self._examples, self.reasoning != "none", list(self._chosen)
        found = few_shot.faults(shown, ties=self.ties, reasoning=reasons, principles=names)
        options.check(self.name, dict.fromkeys(found, False))

    @cached_property
    def _chosen(self) -> Mapping[str, rubric.Principle]:
        return {p.name: p for p in rubric.load(self.constitution).choose(self.principles, "comparison")}

    @cached_property
    def _examples(self) -> tuple[few_shot.Example, ...]:
        return few_shot.load(self.examples) if self.examples else ()

    # ------------------------------------------------------------------------------------------------------- asking

    def asks(self, matchup: Matchup, earlier: Sequence[Reading] = ()) -> list[Ask]:
        """Both orders for each principle; after reasoning, the verdict that it leads to."""
        if earlier:
            return [self._follow_up(matchup, step) for step in _open(earlier)]
        return [self._ask(matchup, principle, first) for principle in self._chosen.values() for first in ORDERS]

    @property
    def _reasons_first(self) -> bool:
        """Is the reasoning a call of its own?"""
        return self.reasoning == "first" and self.form == "token"

    def _ask(self, matchup: Matchup, principle: rubric.Principle, first: Side) -> Ask:
        messages = self._messages(matchup, principle, first)
        if self._reasons_first:
            thinking = Sampling(temperature=0.0, max_tokens=self.reasoning_tokens)
            return Ask(matchup, Request(messages=messages, sampling=thinking), principle.name, first)
        return self._verdict(matchup, principle.name, first, messages)

    def _follow_up(self, matchup: Matchup, step: Reading) -> Ask:
        """The verdict, asked with the reasoning of that step in the conversation."""
        kept = step.detail or {}
        first: Side = "a" if kept["order"] == "a" else "b"
        messages = [
            *self._messages(matchup, self._chosen[step.aspect], first),
            Message(role="assistant", content=kept["reasoning"]),
            Message(role="user", content=self._reply()),
        ]
        return self._verdict(matchup, step.aspect, first, messages)

    def _verdict(self, matchup: Matchup, aspect: str, first: Side, messages: Messages) -> Ask:
        labels = self._labels(first)
        in_json = self.form == "json"
        request = Request(
            messages=messages,
            sampling=Sampling(temperature=0.0, max_tokens=self._limit()),
            answers=() if in_json else tuple(labels),
            json_schema=self._schema(labels) if in_json else None,
            prefix="" if in_json else self.prefix,
        )
        return Ask(matchup, request, aspect, first, labels)

    @property
    def effort(self) -> Effort:
        """Both orders of each principle."""
        questions = len(ORDERS) * len(self._chosen)
        thinking = self.reasoning_tokens if self._reasons_first else 0
        return Effort(questions * (2 if self._reasons_first else 1), questions * (self._limit() + thinking))

    def _limit(self) -> int:
        """Tokens of an answer with a verdict."""
        answer = self.max_tokens or (32 if self.form == "json" else 1)
        reasons = self.reasoning == "after" or (self.reasoning == "first" and self.form == "json")
        return answer + self.reasoning_tokens if reasons else answer

    def _schema(self, labels: Mapping[str, str | float]) -> dict[str, Any]:
        verdict: dict[str, dict[str, Any]] = {"verdict": {"type": "string", "enum": list(labels)}}
        why: dict[str, dict[str, Any]] = {"reasoning": {"type": "string"}}
        if self.reasoning == "none":
            return answers.schema_of(verdict)
        return answers.schema_of(why | verdict if self.reasoning == "first" else verdict | why)

    def _labels(self, first: Side) -> Mapping[str, str | float]:
        """What each letter means in canonical order, for this order of showing."""
        second = "b" if first == "a" else "a"
        return {"A": first, "B": second} | ({"C": "tie"} if self.ties else {})

    # ------------------------------------------------------------------------------------------------ what is shown

    def _messages(self, matchup: Matchup, principle: rubric.Principle, first: Side) -> Messages:
        """The examples, then the conversation and both answers, candidate `first` as answer A; all with one nonce."""
        if matchup.b is None:
            raise ValueError("a pairwise judge needs two candidates")
        shown = list(few_shot.both_orders(self._examples, principle.name))
        sheet = _Sheet.of(matchup.prompt.messages, matchup.a.text, matchup.b.text, first, self._reference(matchup))
        earlier = [_Sheet.of(s.example.messages, s.example.a, s.example.b, s.first) for s in shown]
        code = fence.nonce_of(matchup, sheet.texts(), [text for one in earlier for text in one.texts()])
        messages: Messages = []
        for one, example in zip(earlier, shown, strict=True):
            messages += [one.message(self.words, self._question(principle, one), code), *self._answered(example)]
        return [*messages, sheet.message(self.words, self._question(principle, sheet), code)]

    def _reference(self, matchup: Matchup) -> str:
        """The prompt's reference answer, cleaned, where it is wanted and there is one."""
        return fence.clean(matchup.prompt.reference or "").text.strip() if self.reference else ""

    def _question(self, principle: rubric.Principle, sheet: _Sheet) -> str:
        """What stands below the texts: the question, and the form of the answer."""
        reference = [_WITH_REFERENCE] if sheet.reference else []
        form = _THINK if self._reasons_first else self._reply()
        return "\n".join([principle.question("comparison"), *reference, form])

    def _reply(self) -> str:
        """The form of the answer with the verdict."""
        if self.form == "token":
            tie = ", or C when neither is better" if self.ties else ""
            after = " Then say on a new line, in two or three sentences, why." if self.reasoning == "after" else ""
            return f"Reply with one letter: A or B{tie}.{after}"
        tie = ', or "C" when neither is better' if self.ties else ""
        verdict = f'"verdict", which is "A" or "B"{tie}'
        why = '"reasoning", a few sentences that compare the two'
        fields = {"none": verdict, "first": f"{why}, then {verdict}", "after": f"{verdict}, then {why}"}
        return f"Reply with a JSON object and nothing else. It has {fields[self.reasoning]}."

    def _answered(self, shown: few_shot.Shown) -> Messages:
        """How the judge answers an example."""
        if self._reasons_first:
            return [
                Message(role="assistant", content=shown.reasoning),
                Message(role="user", content=self._reply()),
                Message(role="assistant", content=self._said(shown.letter)),
            ]
        if self.form == "json":
            verdict, why = {"verdict": shown.letter}, {"reasoning": shown.reasoning}
            fields = {"none": verdict, "first": why | verdict, "after": verdict | why}[self.reasoning]
            return [Message(role="assistant", content=json.dumps(fields, ensure_ascii=False))]
        why_after = f"\n{shown.reasoning}" if self.reasoning == "after" else ""
        return [Message(role="assistant", content=self._said(shown.letter) + why_after)]

    def _said(self, letter: str) -> str:
        """A verdict as the model would say it after the prefix, with the bracket closed that the prefix opens."""
        return f"{self.prefix}{letter}{_CLOSING.get(self.prefix[-1:], '')}"

    # ------------------------------------------------------------------------------------------------------ reading

    def read(self, ask: Ask, completion: Completion) -> list[Reading]:
        """One reading: p_a with ties as half, in canonical order for this order of showing; a step of reasoning; or a
        failure."""
        if not ask.labels:
            return [self._step(ask, completion)]
        said = self._heard(ask, completion)
        detail = said.detail() | self._beside(ask, said) | fence.stripped(ask.matchup)
        if said.failure is not None:
            return [Reading(aspect=ask.aspect, verdict="none", failure=said.failure, detail=detail)]
        share = {
            side: sum(p for text, p in said.shares.items() if ask.labels[text] == side) for side in ("a", "b", "tie")
        }
        return [Reading(aspect=ask.aspect, verdict=_largest(share), p_a=share["a"] + share["tie"] / 2, detail=detail)]

    def _heard(self, ask: Ask, completion: Completion) -> answers.Said:
        if self.form == "json":
            why = None if self.reasoning == "none" else "reasoning"
            return answers.in_json(completion, "verdict", ask.labels, why)
        if self.reasoning == "after":
            return answers.said_first(completion, ask.labels, self.min_mass, self.prefix)
        return answers.said(completion, ask.labels, self.min_mass, self.prefix)

    def _beside(self, ask: Ask, said: answers.Said) -> dict[str, Any]:
        """What is kept beside the verdict: the weight of its principle, the reasoning, and whether there was a
        reference."""
        kept: dict[str, Any] = {}
        weight = self._chosen[ask.aspect].weight
        if weight != 1:
            kept["weight"] = weight
        if self._reasons_first:
            kept |= {"reasoning": ask.request.messages[-2]["content"][:KEPT], "order": ask.shown_first}
        elif said.rest:
            kept["reasoning"] = said.rest[:KEPT]
        if self._reference(ask.matchup):
            kept["reference"] = True
        return kept

    def _step(self, ask: Ask, completion: Completion) -> Reading:
        """The reasoning before a verdict; a failure where there is none. One that was cut is taken as it is."""
        if completion.failure is not None:
            why = {"why": completion.failure.detail[:200]}
            return Reading(aspect=ask.aspect, verdict="none", failure=completion.failure.kind, detail=why)
        thought = fence.clean(completion.text).text.strip() if isinstance(completion.text, str) else ""
        if not thought:
            return Reading(aspect=ask.aspect, verdict="none", failure="no_reasoning", detail={"why": "an empty text"})
        return Reading(aspect=ask.aspect, detail={"reasoning": thought, "order": ask.shown_first})


def _open(earlier: Sequence[Reading]) -> list[Reading]:
    """The steps of reasoning that have no verdict yet."""
    done = {_place(r) for r in earlier if r.verdict is not None}
    steps = [r for r in earlier if r.verdict is None and r.failure is None and r.detail and "reasoning" in r.detail]
    return [step for step in steps if _place(step) not in done]


def _place(reading: Reading) -> tuple[str, str | None]:
    return reading.aspect, (reading.detail or {}).get("order")


def _largest(share: Mapping[str, float]) -> Literal["a", "b", "tie"]:
    """The side with the most probability; a tie when both sides have the same, or the tie label has most."""
    if share["a"] > max(share["b"], share["tie"]):
        return "a"
    if share["b"] > max(share["a"], share["tie"]):
        return "b"
    return "tie"


class _Sheet(NamedTuple):
    """What is put before the judge in one question, cleaned: the answers in the order of showing."""

    conversation: str
    first: str
    second: str
    reference: str

    @classmethod
    def of(cls, messages: Messages, a: str, b: str, first: Side, reference: str = "") -> _Sheet:
        shown = (a, b) if first == "a" else (b, a)
        clean = [fence.clean(text).text for text in (fence.transcript(messages), *shown)]
        return cls(clean[0], clean[1], clean[2], reference)

    def texts(self) -> list[str]:
        """What is there."""
        return [self.conversation, self.first, self.second, *([self.reference] if self.reference else [])]

    def message(self, words: Words, question: str, code: str) -> Message:
        """All of it in its fences, and the question."""
        reference = [("reference answer", self.reference)] if self.reference else []
        sides = [(f"{words.side} A", self.first), (f"{words.side} B", self.second)]
        blocks = [(words.conversation, self.conversation), *reference, *sides]
        return Message(role="user", content=fence.sheet(words.opening, blocks, question, code))
