"""What a judge would be asked, what of it is held already, and what the rest may cost. Asks nothing, writes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from factory.budget import worst_case
from factory.calls import unheld
from factory.judges import CannotAsk, LLMJudge
from factory.labelling import matchups as choosing
from factory.labelling.panel import PanelMember, Shown, Work, asks_model, reader_of, scores_of, shown_to
from factory.schema import Ask, Completion, Judgment, Matchup, Request

if TYPE_CHECKING:
    from factory.engines import Engine


@dataclass(frozen=True)
class Planned:
    """What one judge has before it.

    `answers` counts different questions: both orders, aspects and canaries included, equal ones once. Follow-up
    questions depend on answers; `follow_ups` is how many there will be where every answer calls for them.
    """

    judge: str
    kind: str
    matchups: int
    canaries: int
    answers: int  # of a model; 0 for a program or a person
    held: int  # answers, or (of a program) matchups, that are there already
    calls: int  # answers to be paid for, follow-ups aside
    follow_ups: int
    tokens: int  # at most, for calls and their every try, follow-ups aside
    cost: float | None  # US dollars, likewise; None where the price is unknown
    at_most: bool  # the matchups go by scores that are not there yet: these are all that could be chosen

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def planned(work: Work, member: PanelMember, choice: choosing.Choice, lead: str | None) -> Planned:
    """The plan of one judge. FactoryError: it cannot work at all."""
    at_most = member.judge.kind == "pairwise" and choosing.needs_scores(choice) and not _scored(work, lead)
    shown = shown_to(work, member, choosing.Choice("all", choice.most) if at_most else choice, lead)
    real = [one for one in shown if one.matchup.canary is None]
    if not asks_model(member.judge) or member.engine is None:
        held = _voted(work, member, real)
        return Planned(member.name, member.judge.kind, len(real), 0, 0, held, 0, 0, 0, 0.0, at_most)
    usable = [one.matchup for one in shown if one.matchup.a.failure is None]
    asks = [ask for matchup in usable for ask in _asks(member.judge, matchup)]
    answers, open_ = unheld(work.store, member.engine, [a.request for a in asks], retry_failed=work.retry_failed)
    tokens, cost = _worst(member.engine, open_)
    return Planned(
        judge=member.name,
        kind=member.judge.kind,
        matchups=len(real),
        canaries=len(shown) - len(real),
        answers=answers,
        held=answers - len(open_),
        calls=len(open_),
        follow_ups=len(usable) * _follow_ups(member.judge, usable),
        tokens=tokens,
        cost=cost,
        at_most=at_most,
    )


def _scored(work: Work, lead: str | None) -> bool:
    """Has the judge whose scores choose the matchups seen every candidate?"""
    scores = scores_of(work, lead)
    return all(c.key in scores for group in work.candidates.values() for c in group if c.failure is None)


def _voted(work: Work, member: PanelMember, shown: Sequence[Shown]) -> int:
    """Matchups that a program has voted on already."""
    where = {"run": work.run, "round": work.round, "judge": member.name, "reader": reader_of(member.judge)}
    rows = work.store.rows(Judgment, where | {"failure": None})
    held = {(row.candidate_a, row.candidate_b) for row in rows}
    places = ((one.matchup.a.key, one.matchup.b.key if one.matchup.b else None) for one in shown)
    return sum(place in held for place in places)


def _asks(judge: LLMJudge, matchup: Matchup) -> list[Ask]:
    """The first questions; none where it cannot ask, which costs nothing."""
    try:
        return judge.asks(matchup)
    except CannotAsk:
        return []


def _follow_ups(judge: LLMJudge, matchups: Sequence[Matchup]) -> int:
    """Follow-up questions about a matchup, seen by showing the judge an answer that is none of its verdicts."""
    for matchup in matchups:
        if asks := _asks(judge, matchup):
            heard = [
                reading
                for ask in asks
                for reading in judge.read(ask, Completion(ask.request, 0, "Both have merits.", "stop", 1, 1))
            ]
            return len(judge.asks(matchup, heard))
    return 0


def _worst(engine: Engine, requests: Sequence[Request]) -> tuple[int, float | None]:
    """Tokens and dollars that the answers can use at most."""
    spends = [worst_case(engine, request) for request in requests]
    cost: float | None = 0.0
    for spend in spends:
        cost = None if cost is None or spend.cost is None else cost + spend.cost
    return sum(spend.tokens for spend in spends), cost
