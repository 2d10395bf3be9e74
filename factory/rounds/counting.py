"""What the stages of a round would ask and make at most, counted from the recipe alone, in the order of the round.

Each stage is counted with its own settings on what the stages before it leave: a stage that revises one draft a prompt
asks for one, whatever the samples of another stage are. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from factory.judges import Effort, judges
from factory.judges.canaries import batches, planned
from factory.recipe import EnginePart, PanelPart, Recipe, Step

RUBRIC_TOKENS = 350
"""What a judge is told besides prompt and answers, about."""
EXAMPLE_TOKENS = 700
"""What a critique is shown besides, about."""


@dataclass(frozen=True)
class Ask:
    """Work for a model: so many calls in a round, tokens written and read by each, `times` rounds."""

    stage: str
    times: int
    calls: int
    written: int
    read: int
    engine: EnginePart
    model: str

    @property
    def tokens(self) -> int:
        """Written in all, at most."""
        return self.times * self.calls * self.written


class Made(NamedTuple):
    """Rows to train on that a pairing makes, and tokens of their prompts and of each answer, at most."""

    rows: int
    read: int
    written: int


@dataclass(frozen=True)
class Answers:
    """The candidates of one kind: (prompts, answers to each) by the stage that made them, all drawing their prompts in
    one order; tokens of their prompts and of an answer, at most."""

    drawn: tuple[tuple[int, int], ...] = ()
    read: int = 0
    written: int = 0

    def with_more(self, prompts: int, n: int, read: int, written: int) -> Answers:
        """And `n` more to each of so many prompts."""
        return Answers((*self.drawn, (prompts, n)), max(self.read, read), max(self.written, written))

    @property
    def total(self) -> int:
        """All of them."""
        return sum(prompts * n for prompts, n in self.drawn)

    def profile(self, limit: int | None = None) -> Iterator[tuple[int, int]]:
        """(prompts, answers to each) of different prompts, those with the most answers first; of at most `limit`."""
        left, before = math.inf if limit is None else limit, 0
        for edge in sorted({prompts for prompts, _ in self.drawn}):
            count = min(edge - before, left)
            if count > 0:
                yield int(count), sum(n for prompts, n in self.drawn if prompts >= edge)
            left, before = left - (edge - before), edge


@dataclass
class Counted:
    """A round so far: what is asked by step, the candidates by kind, judges' written judgments by judge (questions,
    samples of each, tokens), rows to train on by what is learnt from and pairing, and those of each training."""

    asks: dict[str, list[Ask]] = field(default_factory=dict)
    answers: dict[str, Answers] = field(default_factory=dict)
    written: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    made: dict[tuple[str, str], Made] = field(default_factory=dict)
    trainings: dict[str, list[Made]] = field(default_factory=dict)


def count(recipe: Recipe, number: int, prompts: Mapping[str, int], read: int) -> Counted:
    """What round `number` comes to. prompts: number of prompts a split; read: tokens of a prompt."""
    found = Counted()
    for step in recipe.steps_of(number):
        here = recipe.at(step)
        found.asks[step.name] = list(STAGES[step.stage](found, here, step, drawn(here, prompts), read))
    return found


def drawn(here: Recipe, prompts: Mapping[str, int]) -> int:
    """Prompts that a round draws; as many as it may where none are known."""
    return min(here.prompts.per_round, prompts.get("train", 0)) or here.prompts.per_round


# --------------------------------------------------------------------------------------------------------- stages


def _generate(found: Counted, here: Recipe, step: Step, prompts: int, read: int) -> Iterator[Ask]:
    part = here.generate
    yield Ask(step.name, 1, prompts * part.n, part.max_tokens, read, here.engine, here.model)
    _add(found, part.kind, prompts, part.n, read, part.max_tokens)


def _revise(found: Counted, here: Recipe, step: Step, prompts: int, read: int) -> Iterator[Ask]:
    part, size = here.revise, here.revise.rounds
    kinds = _first_answers(found)
    calls = 2 * size * sum(drafts.total for drafts in kinds)
    yield Ask(step.name, 1, calls, part.max_tokens, read + EXAMPLE_TOKENS, here.engine, here.model)
    for drafts in kinds:
        for count, n in drafts.drawn:
            _add(found, "critique", count, n * size, read, part.max_tokens)
            _add(found, "revision", count, n * size, read, part.max_tokens)


def _label(found: Counted, here: Recipe, step: Step, prompts: int, read: int) -> Iterator[Ask]:
    answers = found.answers.get(here.label.kind, Answers())
    for part in here.panel:
        if judges.facts(part.judge)["asks"]:
            ask, questions = judged(here, step.name, part, answers)
            yield ask
            found.written[here.member_name(part)] = questions


def _collect(found: Counted, here: Recipe, step: Step, prompts: int, read: int) -> Iterator[Ask]:
    questions, samples, tokens = found.written.get(here.collect.judge, (0, 0, 0))
    questions = min(questions, here.collect.questions or questions)
    if samples > 1:
        _add(found, "judgment", questions, samples, read + RUBRIC_TOKENS + here.generate.max_tokens, tokens)
    return iter(())


def _pair(found: Counted, here: Recipe, step: Step, prompts: int, read: int) -> Iterator[Ask]:
    from factory.pairing import strategies

    part = here.pair
    lineage = bool(strategies.facts(part.strategy).get("lineage"))
    answers = found.answers.get("revision" if lineage else part.kind, Answers())
    if lineage:
        pairs = sum(drafts.total for drafts in _first_answers(found))
    else:
        pairs = sum(count * _pairs_of(part.strategy, n, part.per_prompt) for count, n in answers.profile())
    labels = {"pairs": 2 * pairs, "none": 0}.get(part.label_by, answers.total)
    good = pairs if part.label_by == "pairs" else labels
    best = min(good, sum(count for count, _ in answers.profile()))
    rows = {"preferences": pairs, "labels": labels, "good answers": good, "best answers": best}
    for what, size in rows.items():
        found.made[what, part.called] = Made(size, answers.read, answers.written)
    return iter(())


def _train(found: Counted, here: Recipe, step: Step, prompts: int, read: int) -> Iterator[Ask]:
    from factory.training import needs
    from train import losses

    part, online = here.train, here.train.config.online
    if online is None:
        objective = losses.get(part.config.method)
        what = needs(part.config)
        if objective.data == "completions":
            what = "best answers" if objective.takes == "best" else "good answers"
        names = part.pairings or [here.pair.called]
        found.trainings[step.name] = [made for name in names if (made := found.made.get((what, name)))]
        return
    batch = Answers(((online.prompts, online.n),), read, online.max_tokens)
    found.trainings[step.name] = [Made(online.steps * batch.total, read, online.max_tokens)]
    for judge in part.reward or ():
        if judges.facts(judge.judge)["asks"]:
            ask, _ = judged(here, step.name, judge, batch)
            yield replace(ask, calls=online.steps * ask.calls)


STAGES = {
    "generate": _generate,
    "revise": _revise,
    "label": _label,
    "collect": _collect,
    "pair": _pair,
    "train": _train,
}


def _first_answers(found: Counted) -> list[Answers]:
    """What is there to revise: samples and drafts."""
    return [found.answers[kind] for kind in ("sample", "draft") if kind in found.answers]


def _add(found: Counted, kind: str, prompts: int, n: int, read: int, written: int) -> None:
    found.answers[kind] = found.answers.get(kind, Answers()).with_more(prompts, n, read, written)


# --------------------------------------------------------------------------------------------------------- judges


def judged(here: Recipe, stage: str, part: PanelPart, answers: Answers) -> tuple[Ask, tuple[int, int, int]]:
    """What one judge is asked in a round at most: of each candidate, or of each pair; canaries on top. And what it
    writes: questions, samples of each, tokens of one. A judge that cannot say what a matchup costs (a rubric of each
    prompt's own) is counted as one call."""
    judge = judges.get(part.judge)(name=here.member_name(part), **part.options)
    effort: Effort = getattr(judge, "effort", None) or Effort(2 if judge.kind == "pairwise" else 1, 1)
    single = judge.kind == "pointwise"
    profile = answers.profile(part.prompts)
    matchups = sum(count * (n if single else pairs_at_most(part.matchups, n)) for count, n in profile)
    tokens = max(1, effort.tokens // effort.calls)
    own = here.model if part.model in {None, "policy", "previous", "start"} else str(part.model)
    ask = Ask(
        f"{stage}: {here.member_name(part)}",
        1,
        with_canaries(matchups) * effort.calls,
        tokens,
        answers.read + RUBRIC_TOKENS + (1 if single else 2) * answers.written,
        part.engine or here.engine,
        own,
    )
    return ask, (matchups, int(getattr(judge, "samples", 1)), tokens)


def with_canaries(matchups: int) -> int:
    """So many matchups with the canaries of their batches."""
    return matchups + sum(planned(len(batch)) for batch in batches(matchups))


def pairs_at_most(choice: str, n: int) -> int:
    """Pairs of a prompt's n answers that a choice of matchups makes, at most."""
    name, _, most = choice.partition(":")
    pairs = n - 1 if name == "against_best" else n * (n - 1) // 2
    return min(pairs, int(most)) if most.isdigit() else pairs


def _pairs_of(strategy: str, n: int, most: int | None) -> int:
    """Preferences that a strategy makes of a prompt's n answers, at most."""
    pairs = n * (n - 1) // 2
    found = pairs if strategy in ("all", "tie_aware") else min(pairs, 1)
    return found if most is None else min(found, most)
