"""Rubrics of a prompt's own: weighted criteria, met or not, and the judge that goes by them.

Rubrics as Rewards (Gunjal et al. 2025, arXiv 2507.17746, section 3). *Explicit* aggregation asks about each criterion
and takes r = sum_j w_j c_j / sum_j w_j (eq. 1), with c_j the probability that criterion j is met where the paper takes
0 or 1. *Implicit* aggregation shows all criteria with their weights and asks for one score (eq. 2), on 0 to 9 where the
paper takes 1 to 10, so that each score is one token. A criterion with a negative weight describes a fault: it counts
|w| when it is not met, so that r stays within 0 and 1 (HealthBench, 2505.08775, subtracts and clips instead).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import yaml

from factory.faults import ConfigError, FactoryError
from factory.judges import CannotAsk, Effort, answers, fence, options, single
from factory.schema import Ask, Completion, Matchup, Reading, Request, Sampling

Aggregation = Literal["explicit", "implicit"]
Form = Literal["token", "json"]
OF_THE_PROMPT = "prompt"
YES_NO = {"Yes": 1.0, "No": 0.0}
GRADES = {str(grade): float(grade) for grade in range(10)}

_TEXTS, _WEIGHTS = ("text", "criterion", "description"), ("weight", "points")
_BESIDE = {"title", "name", "tags", "category"}  # known keys that say nothing about how to judge
_CHECK = "Check one thing about the answer to the conversation below."
_CHECK_ALL = "Check a list of things about the answer to the conversation below."
_GRADE = "Grade the answer to the conversation below by a rubric."
_PREFIX = {"explicit": 'My answer, Yes or No, is "', "implicit": "My grade of the answer is ("}
MANY = 99  # criteria in one rubric at most


class Criterion(NamedTuple):
    """One line of a rubric. A negative weight: what it says is a fault."""

    text: str
    weight: float

    def as_json(self) -> dict[str, Any]:
        """The form it has in `prompts.rubric`."""
        return {"text": self.text, "weight": self.weight}


def criteria_of(value: Any) -> tuple[Criterion, ...]:
    """A rubric from plain values: a list of texts, of {text, weight} (weight 1 when none is given), or in the forms of
    RaR ({description, weight}) and HealthBench ({criterion, points}). ConfigError names every fault by its place."""
    if isinstance(value, str | Mapping) or not isinstance(value, Sequence) or not value or len(value) > MANY:
        raise ConfigError([f"a rubric is a list of 1 to {MANY} criteria, each {{text, weight}} or a text"])
    faults: list[str] = []
    found = [_criterion(item, place, faults) for place, item in enumerate(value)]
    if not faults and not any(c.weight for c in found):
        faults.append("every weight is 0")
    if faults:
        raise ConfigError(faults)
    return tuple(found)


def _criterion(item: Any, place: int, faults: list[str]) -> Criterion:
    given = {"text": item} if isinstance(item, str) else item
    if not isinstance(given, Mapping):
        faults.append(f"{place}: must be {{text, weight}} or a text, not {type(item).__name__}")
        return Criterion("", 1.0)
    text = next((given[name] for name in _TEXTS if given.get(name) is not None), None)
    weight = next((given[name] for name in _WEIGHTS if given.get(name) is not None), 1.0)
    if not isinstance(text, str) or not text.strip():
        faults.append(f"{place}.text: must be a text that is not empty")
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
        faults.append(f"{place}.weight: must be a number, not {weight!r}")
        weight = 1.0
    unknown = sorted(str(key) for key in given if key not in {*_TEXTS, *_WEIGHTS, *_BESIDE})
    if unknown:
        faults.append(f"{place}: unknown keys {', '.join(unknown)}; known: text, weight")
    return Criterion(str(text).strip(), float(weight))


@dataclass
class RubricJudge:
    """Goes by the criteria of each prompt's own rubric, or by one rubric for all.

    `criteria`: "prompt" (the column `rubric` of the prompts), a YAML or JSON file, or a list of {text, weight}.
    `aggregation`: "explicit" (each criterion is a question, answered Yes or No, and an aspect with its weight) or
    "implicit" (one score for the whole). `together`: all criteria of an explicit rubric in one call, answered as text.
    `prefix` (its own for each aggregation), `min_mass`, `max_tokens`, `form` and `reference` as for the pairwise judge.
    """

    name: str = "rubric"
    criteria: str | Sequence[Any] = OF_THE_PROMPT
    aggregation: Aggregation = "explicit"
    together: bool = False
    prefix: str | None = None
    min_mass: float = 0.5
    max_tokens: int | None = None
    form: Form = "token"
    reference: bool = False
    reader: str = field(default="3", init=False)
    kind: Literal["pointwise", "pairwise"] = field(default="pointwise", init=False)

    def __post_init__(self) -> None:
        """ConfigError or FactoryError for every option that is wrong, before anything is asked."""
        options.check(
            self.name,
            options.choice("aggregation", self.aggregation, get_args(Aggregation))
            | options.choice("form", self.form, get_args(Form))
            | options.flag("together", self.together)
            | options.flag("reference", self.reference)
            | options.share("min_mass", self.min_mass)
            | options.count("max_tokens", self.max_tokens, optional=True)
            | {
                "together: an implicit rubric is one question already": not (
                    self.together is True and self.aggregation == "implicit"
                )
            },
        )
        _ = self._shared

    @cached_property
    def _shared(self) -> tuple[Criterion, ...]:
        """The rubric for all prompts; empty where each has its own."""
        if self.criteria == OF_THE_PROMPT:
            return ()
        where = self.criteria if isinstance(self.criteria, str) else f"criteria of the judge {self.name!r}"
        given = _read(Path(self.criteria)) if isinstance(self.criteria, str) else self.criteria
        try:
            return criteria_of(given)
        except ConfigError as fault:
            raise ConfigError(fault.faults, where=where, todo="write a list of {text, weight}") from fault

    @property
    def _prefix(self) -> str:
        return _PREFIX[self.aggregation] if self.prefix is None else self.prefix

    def _criteria(self, matchup: Matchup) -> tuple[Criterion, ...]:
        """What the answer is judged by; criteria of no weight are left out. CannotAsk where the prompt has no usable
        rubric."""
        if self._shared:
            return _counting(self._shared)
        if not matchup.prompt.rubric:
            raise CannotAsk("no_rubric", "the prompt has no rubric (factory prompts add --map rubric=COLUMN)")
        try:
            return _counting(criteria_of(matchup.prompt.rubric))
        except ConfigError as fault:
            raise CannotAsk("bad_rubric", "; ".join(fault.faults)) from fault

    # ------------------------------------------------------------------------------------------------------- asking

    def asks(self, matchup: Matchup, earlier: Sequence[Reading] = ()) -> list[Ask]:
        """A question for each criterion, or one for all; no follow-up."""
        if earlier:
            return []
        criteria = self._criteria(matchup)
        if self.aggregation == "implicit":
            return [self._grade(matchup, criteria)]
        if self.together:
            return [self._check_all(matchup, criteria)]
        return [self._check(matchup, place, criterion) for place, criterion in enumerate(criteria)]

    @property
    def effort(self) -> Effort | None:
        """A question for each criterion, or one for all; None where that depends on the prompt's own rubric."""
        if self.aggregation == "implicit":
            return Effort(1, self._limit())
        if not self._shared:
            return None
        criteria = len(_counting(self._shared))
        return Effort(1, self._limit(criteria)) if self.together else Effort(criteria, criteria * self._limit())

    def _limit(self, together: int = 0) -> int:
        """Tokens of an answer, to so many criteria together."""
        return self.max_tokens or (8 + 16 * together if together else 24 if self.form == "json" else 1)

    def _check(self, matchup: Matchup, place: int, criterion: Criterion) -> Ask:
        question = [
            f"Does this hold for the answer? {criterion.text}",
            self._reply("one word: Yes or No", '"Yes" or "No"'),
        ]
        return self._ask(matchup, _CHECK, question, YES_NO, _aspect(place, criterion))

    def _grade(self, matchup: Matchup, criteria: Sequence[Criterion]) -> Ask:
        question = [
            "The rubric, each criterion with its weight. One with a negative weight describes a fault:",
            *(f"{place + 1}. ({c.weight:+g}) {c.text}" for place, c in enumerate(criteria)),
            "Grade the answer as a whole: 0 when it meets nothing that counts for it, 9 when it meets all of that and "
            "has none of the faults.",
            self._reply("one number from 0 to 9", "a number from 0 to 9"),
        ]
        return self._ask(matchup, _GRADE, question, GRADES, "rubric")

    def _reply(self, token: str, in_json: str) -> str:
        if self.form == "token":
            return f"Reply with {token}."
        return f'Reply with a JSON object and nothing else. It has "verdict", which is {in_json}.'

    def _ask(
        self, matchup: Matchup, opening: str, question: Sequence[str], labels: Mapping[str, float], aspect: str
    ) -> Ask:
        in_json = self.form == "json"
        kind: dict[str, Any] = (
            {"type": "string", "enum": list(labels)} if labels is YES_NO else {"type": "integer", "enum": [*range(10)]}
        )
        request = Request(
            messages=single.messages(matchup, opening, question, reference=self.reference),
            sampling=Sampling(temperature=0.0, max_tokens=self._limit()),
            answers=() if in_json else tuple(labels),
            json_schema=answers.schema_of({"verdict": kind}) if in_json else None,
            prefix="" if in_json else self._prefix,
        )
        return Ask(matchup, request, aspect, None, dict(labels))

    def _check_all(self, matchup: Matchup, criteria: Sequence[Criterion]) -> Ask:
        names = _names(criteria)
        listed = [f"{name}: {c.text}" for name, c in zip(names, criteria, strict=True)]
        if self.form == "json":
            form = ["Reply with a JSON object and nothing else: for each criterion's name, Yes or No."]
        else:
            form = ["Reply with one line for each, in this form, and nothing else:", f"{names[0]}: <Yes or No>"]
        question = ["Does each of these hold for the answer?", *listed, *form]
        fields = {name: {"type": "string", "enum": list(YES_NO)} for name in names}
        request = Request(
            messages=single.messages(matchup, _CHECK_ALL, question, reference=self.reference),
            sampling=Sampling(temperature=0.0, max_tokens=self._limit(len(names))),
            json_schema=answers.schema_of(fields) if self.form == "json" else None,
        )
        return Ask(matchup, request, TOGETHER)

    # ------------------------------------------------------------------------------------------------------ reading

    def read(self, ask: Ask, completion: Completion) -> list[Reading]:
        """A reading for each criterion asked about, scored 0 to 1 and weighted; for an implicit rubric one, 0 to 9."""
        if self.aggregation == "implicit":
            said = self._heard(completion, GRADES)
            return [single.score(said, GRADES, ask.aspect, single.beside(ask.matchup, 1.0, self.reference))]
        criteria = self._criteria(ask.matchup)
        if ask.labels:
            place = int(ask.aspect.partition(" ")[0]) - 1
            return [self._reading(ask, place, criteria[place], self._heard(completion, YES_NO))]
        names = _names(criteria)
        heard = answers.several(completion, dict.fromkeys(names, tuple(YES_NO)), {})
        return [self._reading(ask, place, criteria[place], heard[name]) for place, name in enumerate(names)]

    def _heard(self, completion: Completion, labels: Mapping[str, float]) -> answers.Said:
        if self.form == "json":
            return answers.in_json(completion, "verdict", labels)
        return answers.said(completion, labels, self.min_mass, self._prefix)

    def _reading(self, ask: Ask, place: int, criterion: Criterion, said: answers.Said) -> Reading:
        """How well the answer does by one criterion: 1 where it is met, or where a fault is absent."""
        counts = YES_NO if criterion.weight > 0 else {answer: 1 - met for answer, met in YES_NO.items()}
        beside = single.beside(ask.matchup, abs(criterion.weight), self.reference)
        told = {"criterion": criterion.text[:200], "fault": criterion.weight < 0}
        return single.score(said, counts, _aspect(place, criterion), told | beside)


TOGETHER = "together"
"""Aspect of a question about all criteria. Its readings carry their own."""


def _counting(criteria: Sequence[Criterion]) -> tuple[Criterion, ...]:
    """The criteria that have a weight, cleaned as every text that came with the data is."""
    return tuple(c._replace(text=fence.clean(c.text).text) for c in criteria if c.weight)


def _names(criteria: Sequence[Criterion]) -> list[str]:
    return [f"C{place + 1}" for place in range(len(criteria))]


def _aspect(place: int, criterion: Criterion) -> str:
    """Number and beginning of a criterion: its name in the tables."""
    return f"{place + 1} {' '.join(criterion.text.split())[:60]}"


def _read(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise FactoryError(
            f"the rubric cannot be read: {error}", where=str(path), todo='name a YAML or JSON file, or "prompt"'
        ) from error
