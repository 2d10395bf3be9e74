"""Which candidates are put before a judge: all pairs, the best against the rest, what an earlier judge left open, or a
draw.

Pure. A choice is a name with an optional number, the most pairs a prompt may have: `all`, `against_best`,
`verifier_ties:2`, `random:3`. Failed candidates are in no pair, and neither are two with the same text: there is
nothing to prefer.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from factory.faults import FactoryError
from factory.registry import Registry
from factory.schema import Candidate, digest
from factory.verdicts import Score, from_scores

CandidatePair = tuple[Candidate, Candidate]
Scores = Mapping[str, Score | None]
Choose = Callable[[Sequence[CandidatePair], Scores], list[CandidatePair]]

choices: Registry[Choose] = Registry("choice of matchups")


class Choice(NamedTuple):
    """A parsed choice: its name and the most pairs of one prompt (None: no limit)."""

    name: str
    most: int | None


def parse(text: str) -> Choice:
    """`name` or `name:k`. FactoryError names what is wrong."""
    name, colon, number = text.partition(":")
    choices.get(name)
    if not colon and name != "random":
        return Choice(name, None)
    if not (number.isascii() and number.isdigit() and int(number) > 0):
        raise FactoryError(f"{text!r} needs a number of pairs for each prompt", todo=f"write {name}:3, say")
    return Choice(name, int(number))


def needs_scores(choice: Choice) -> bool:
    """Does the choice go by the scores of an earlier pointwise judge?"""
    return bool(choices.facts(choice.name)["scores"])


def current(candidates: Iterable[Candidate]) -> list[Candidate]:
    """The candidates without failures that another attempt at the same answer has replaced; in the order given."""
    rows = list(candidates)
    last: dict[tuple[Any, ...], Candidate] = {}
    for row in sorted(rows, key=lambda c: (c.failure is None, c.at, c.key)):
        last[_place(row)] = row
    return [row for row in rows if row.failure is None or last[_place(row)] is row]


def _place(row: Candidate) -> tuple[Any, ...]:
    """The answer that a candidate is an attempt at; one without a call is its own."""
    return row.run, row.round, row.kind, row.call_key or row.key


def same_text(a: Candidate, b: Candidate) -> bool:
    """Do both say the same, blanks at the ends aside?"""
    return a.text.strip() == b.text.strip()


def every_pair(candidates: Sequence[Candidate]) -> list[CandidatePair]:
    """All pairs of one prompt's answers in canonical order, failed ones left out."""
    answered = sorted((c for c in candidates if c.failure is None), key=lambda c: c.key)
    return list(itertools.combinations(answered, 2))


def choose(candidates: Sequence[Candidate], choice: Choice, scores: Scores, seed: int) -> list[CandidatePair]:
    """The pairs of one prompt that a judge is shown, ordered by key; the same for any order of the candidates.

    With a limit: the first of them in an order drawn by `seed`.
    """
    open_pairs = [pair for pair in every_pair(candidates) if not same_text(*pair)]
    chosen = choices.get(choice.name)(open_pairs, scores)
    if choice.most is not None and len(chosen) > choice.most:
        chosen = sorted(chosen, key=lambda pair: digest(seed, "matchup", pair[0].key, pair[1].key))[: choice.most]
    return sorted(chosen, key=lambda pair: (pair[0].key, pair[1].key))


@choices.register("all", scores=False)
def _all(pairs: Sequence[CandidatePair], scores: Scores) -> list[CandidatePair]:
    return list(pairs)


@choices.register("random", scores=False)
def _random(pairs: Sequence[CandidatePair], scores: Scores) -> list[CandidatePair]:
    """The draw is made by the limit."""
    return list(pairs)


@choices.register("against_best", scores=True)
def _against_best(pairs: Sequence[CandidatePair], scores: Scores) -> list[CandidatePair]:
    """The best by the earlier judge against each other answer."""
    ranked = _ranked(pairs, scores)
    return [pair for pair in pairs if ranked[:1] and ranked[0] in (pair[0].key, pair[1].key)]


@choices.register("verifier_ties", scores=True)
def _verifier_ties(pairs: Sequence[CandidatePair], scores: Scores) -> list[CandidatePair]:
    """Pairs that the earlier judge ties, and its best against its worst."""
    ranked = _ranked(pairs, scores)
    ends = {ranked[0], ranked[-1]} if ranked else set()
    return [pair for pair in pairs if {pair[0].key, pair[1].key} == ends or _tied(pair, scores)]


def _ranked(pairs: Sequence[CandidatePair], scores: Scores) -> list[str]:
    """Keys of the scored candidates in these pairs, best first; equals by key."""
    known = {c.key: score.share for pair in pairs for c in pair if (score := scores.get(c.key)) is not None}
    return sorted(known, key=lambda key: (-known[key], key))


def _tied(pair: CandidatePair, scores: Scores) -> bool:
    a, b = (scores.get(c.key) for c in pair)
    return a is not None and b is not None and from_scores(a, b).verdict == "tie"
