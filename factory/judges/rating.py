"""The rating judge: a language model scores one answer by an aspect, or by several in one call.

The score is read from the distribution over the scale's tokens where the engine shows it (see
`factory/judges/single.py`), else from a text or JSON that must be exactly a score. Several aspects in one call cost one
reading of the answer instead of one each; each score is then found by the name of its aspect, so that one that cannot
be read fails alone and shifts no other. The aspects of `quality-aspects` follow UltraFeedback (2310.01377).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, get_args

from factory.judges import Effort, answers, options, rubric, single
from factory.schema import Ask, Completion, Matchup, Reading, Request, Sampling

Form = Literal["token", "json"]
_OPENING = "Rate the answer to the conversation below."


@dataclass
class RatingJudge:
    """Asks for a score of one answer, once for each aspect, or for all of them `together` in one call.

    `aspects` are principles of `constitution` with a rating question (all of them when none is named), each counting by
    its weight. `prefix`, `min_mass`, `max_tokens`, `form` and `reference` as for the pairwise judge. Answers to several
    aspects together are always text: a line each, or a JSON object.
    """

    name: str = "rating"
    constitution: str = "instruction-following"
    aspects: Sequence[str] | str = ()
    prefix: str = "My rating of the answer is ("
    min_mass: float = 0.5
    max_tokens: int | None = None
    form: Form = "token"
    together: bool = False
    reference: bool = False
    reader: str = field(default="4", init=False)
    kind: Literal["pointwise", "pairwise"] = field(default="pointwise", init=False)

    def __post_init__(self) -> None:
        """ConfigError or FactoryError for every option that is wrong, before anything is asked."""
        options.check(
            self.name,
            options.flag("together", self.together)
            | options.flag("reference", self.reference)
            | options.share("min_mass", self.min_mass)
            | options.count("max_tokens", self.max_tokens, optional=True)
            | options.choice("form", self.form, get_args(Form)),
        )
        _ = self._chosen

    @cached_property
    def _chosen(self) -> Mapping[str, rubric.Principle]:
        return {p.name: p for p in rubric.load(self.constitution).choose(self.aspects, "rating")}

    def asks(self, matchup: Matchup, earlier: Sequence[Reading] = ()) -> list[Ask]:
        """One question for each aspect, or one for all; no follow-up."""
        if earlier:
            return []
        if self.together:
            return [self._ask_all(matchup)]
        return [self._ask(matchup, principle) for principle in self._chosen.values()]

    @property
    def effort(self) -> Effort:
        """A question for each aspect, or one for all."""
        questions = 1 if self.together else len(self._chosen)
        return Effort(questions, questions * self._limit())

    def _limit(self) -> int:
        """Tokens of an answer."""
        if self.together:
            return self.max_tokens or 8 + 24 * len(self._chosen)
        return self.max_tokens or (24 if self.form == "json" else 1)

    def _ask(self, matchup: Matchup, principle: rubric.Principle) -> Ask:
        labels: dict[str, str | float] = dict(labels_of(principle))
        in_json = self.form == "json"
        form = 'Reply with a JSON object and nothing else. It has "score", one number' if in_json else _NUMBER
        question = [*asked(principle), f"{form} {_range(principle)}."]
        request = Request(
            messages=single.messages(matchup, _OPENING, question, reference=self.reference),
            sampling=Sampling(temperature=0.0, max_tokens=self._limit()),
            answers=() if in_json else tuple(labels),
            json_schema=answers.schema_of({"score": _one_of(principle)}) if in_json else None,
            prefix="" if in_json else self.prefix,
        )
        return Ask(matchup, request, principle.name, None, labels)

    def _ask_all(self, matchup: Matchup) -> Ask:
        """One question with every aspect under its name."""
        chosen = self._chosen.values()
        in_json = self.form == "json"
        what = "a JSON object" if in_json else "one line for each aspect, in this form,"
        form = [f"Reply with {what} and nothing else:"]
        if in_json:
            fields = ", ".join(f'"{p.name}": <number {_range(p)}>' for p in chosen)
            form.append(f"{{{fields}}}")
        else:
            form += [f"{p.name}: <number {_range(p)}>" for p in chosen]
        question = [line for p in chosen for line in (f"Aspect {p.name}: {asked(p)[0]}", *asked(p)[1:])]
        request = Request(
            messages=single.messages(matchup, _OPENING, [*question, *form], reference=self.reference),
            sampling=Sampling(temperature=0.0, max_tokens=self._limit()),
            json_schema=answers.schema_of({p.name: _one_of(p) for p in chosen}) if in_json else None,
        )
        return Ask(matchup, request, TOGETHER)

    def read(self, ask: Ask, completion: Completion) -> list[Reading]:
        """A reading for each aspect asked about: the expected score with its scale, or a failure."""
        if ask.aspect == TOGETHER and not ask.labels:
            scores = {name: tuple(labels_of(p)) for name, p in self._chosen.items()}
            ends = {name: f"/{max(p.scale)}" for name, p in self._chosen.items()}
            heard = answers.several(completion, scores, ends)
            return [self._reading(ask, self._chosen[name], said) for name, said in heard.items()]
        principle = self._chosen[ask.aspect]
        scale = labels_of(principle)
        if self.form == "json":
            return [self._reading(ask, principle, answers.in_json(completion, "score", scale))]
        said = answers.said(completion, scale, self.min_mass, self.prefix, suffix=f"/{max(principle.scale)}")
        return [self._reading(ask, principle, said)]

    def _reading(self, ask: Ask, principle: rubric.Principle, said: answers.Said) -> Reading:
        beside = single.beside(ask.matchup, principle.weight, self.reference)
        return single.score(said, labels_of(principle), principle.name, beside)


TOGETHER = "together"
"""Aspect of a question about all aspects. Its readings carry their own."""
_NUMBER = "Reply with one number"


def asked(principle: rubric.Principle) -> list[str]:
    """The rating question and what each score means, line by line."""
    scale = sorted(principle.scale)
    return [principle.question("rating"), *(f"{score}: {principle.scale[score]}" for score in scale)]


def labels_of(principle: rubric.Principle) -> dict[str, float]:
    """Each score of the scale as the text that gives it."""
    return {str(score): float(score) for score in sorted(principle.scale)}


def _range(principle: rubric.Principle) -> str:
    return f"from {min(principle.scale)} to {max(principle.scale)}"


def _one_of(principle: rubric.Principle) -> dict[str, Any]:
    return {"type": "integer", "enum": sorted(principle.scale)}
