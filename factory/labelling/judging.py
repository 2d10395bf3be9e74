"""One judge at work: its matchups become rows of judgments, each written as soon as it is known.

A program `vote`s. A language model is asked through `factory.calls`, part by part; an engine that several threads may
use has two parts under way, so that the next one's questions are made while the answers to this one come in.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import cast

from factory import console, crash, verdicts
from factory.budget import BudgetError
from factory.calls import answer
from factory.engines import Engine
from factory.faults import EndpointError, FactoryError, IntegrityError, LockedError
from factory.judges import CannotAsk, Judge, LLMJudge
from factory.labelling import matchups as choosing
from factory.labelling.panel import (
    JudgeReport,
    PanelMember,
    Shown,
    Work,
    asks_model,
    is_shared,
    reader_of,
    shown_to,
)
from factory.schema import Ask, Call, Completion, Failure, Judgment, Matchup, Reading, Request, digest, now
from factory.threads import side_by_side

AT_ONCE = 4096
"""Matchups of a part: in memory as rendered questions, and one piece of work for an engine."""
AT_ONCE_SHARED = 512
"""The same where parts overlap."""
PARTS = 2
"""Parts under way at once, where the engine allows it: one is asked about, the next is being made ready."""
TAIL = 2
"""Answers that a part still waits for, in units of what the engine has under way, when the next one's turn begins."""
COMMIT = 64
"""Judgments in one commit."""
COMMIT_SECONDS = 2.0
"""A commit waits no longer than this for more, so that readers see the work as it goes."""
Place = tuple[str, str | None]
"""Keys of the one or two candidates that a judge was shown."""
Votes = Mapping[Place, Sequence[Judgment]]
ENDS_ALL = (BudgetError, EndpointError, IntegrityError, LockedError)
"""Faults that no other judge or row would escape."""


@dataclass
class Done:
    """What came of a part: its rows, how many of them are new, and what its answers cost."""

    rows: list[Judgment] = field(default_factory=list)
    new: int = 0
    calls: int = 0
    reused: int = 0
    tokens: int = 0
    cost: float | None = 0.0
    fault: FactoryError | None = None  # what ended it early

    def pay(self, call: Call, *, reused: bool) -> None:
        """Count what an answer cost, unless it was held from before."""
        if reused:
            self.reused += 1
            return
        self.calls += 1
        self.tokens += call.prompt_tokens + call.completion_tokens
        self.cost = None if self.cost is None or call.cost is None else self.cost + call.cost


def judge(work: Work, member: PanelMember, choice: choosing.Choice, lead: str | None) -> JudgeReport:
    """Let one judge do its matchups, and count what it said. A fault of its own is in the report; one that ends the
    work of all is raised, with all that was said before it written."""
    report = JudgeReport(member.name, member.judge.kind)
    began = time.monotonic()
    shown = shown_to(work, member, choice, lead)
    report.matchups = sum(one.matchup.canary is None for one in shown)
    size = AT_ONCE_SHARED if is_shared(member.engine) else AT_ONCE
    parts = [shown[place : place + size] for place in range(0, len(shown), size)]
    failed: list[FactoryError] = []
    held = {} if asks_model(member.judge) else _held(work, member)
    tasks = [partial(_part, work, member, part, held, failed) for part in parts]
    done = side_by_side(tasks, PARTS if is_shared(member.engine) else 1, work.claims.end)
    _count(work, report, done)
    if failed:
        report.fault = failed[0].text()
    report.seconds = time.monotonic() - began
    return report


def judged(work: Work, member: PanelMember, shown: Sequence[Shown]) -> list[Judgment]:
    """All that one judge says of what it is shown now, each judgment written as it comes. Unlike `judge`, it looks for
    no votes from before, and a fault of the judge's own is raised."""
    done = Done()
    _write(work, _judgments(work, member, shown, {}, done), done)
    return done.rows


def _part(work: Work, member: PanelMember, shown: Sequence[Shown], held: Votes, failed: list[FactoryError]) -> Done:
    """One part, unless an earlier one has shown that the judge cannot work."""
    done = Done()
    if failed or work.ended:
        return done
    try:
        _write(work, _judgments(work, member, shown, held, done), done)
    except ENDS_ALL:
        raise
    except FactoryError as fault:
        failed.append(fault)
    return done


def _write(work: Work, judgments: Generator[Judgment], done: Done) -> None:
    """Write the judgments as they come, a few at a time; also those that came before a fault or an interrupt."""
    waiting: list[Judgment] = []
    since = time.monotonic()
    with closing(judgments):
        try:
            for row in judgments:
                waiting.append(row)
                if len(waiting) >= COMMIT or time.monotonic() - since >= COMMIT_SECONDS:
                    _commit(work, waiting, done)
                    waiting, since = [], time.monotonic()
        finally:
            _commit(work, waiting, done)


def _commit(work: Work, rows: list[Judgment], done: Done) -> None:
    if rows:
        done.new += work.store.append("judgments", rows)
        crash.point("labelling.after_append")
        done.rows.extend(rows)


def _judgments(work: Work, member: PanelMember, shown: Sequence[Shown], held: Votes, done: Done) -> Generator[Judgment]:
    """All that the judge says, as it comes. A candidate that failed gets a row that says so and is shown to nobody."""
    for one in shown:
        if one.matchup.a.failure is not None:
            yield _judgment(work, member, one, Reading(failure="candidate_failed"))
    usable = [one for one in shown if one.matchup.a.failure is None]
    if asks_model(member.judge) and member.engine is not None:
        yield from _ask(work, member, member.judge, member.engine, usable, done)
    elif not asks_model(member.judge):
        yield from _vote(work, member, cast("Judge", member.judge), [one.matchup for one in usable], held)


def _judgment(
    work: Work,
    member: PanelMember,
    shown: Shown,
    reading: Reading,
    ask: Ask | None = None,
    call: Call | None = None,
) -> Judgment:
    """A reading as a row. Its key is the same whenever the same answer is read by the same reader; a canary vouches for
    one batch, so that its key holds that too."""
    matchup = shown.matchup
    a, b = matchup.a.key, matchup.b.key if matchup.b else None
    first, aspect = (ask.shown_first, reading.aspect or ask.aspect) if ask else (None, reading.aspect)
    reader = reader_of(member.judge)
    vouched = () if matchup.canary is None else (shown.batch,)
    source = (call.key, call.attempt) if call else None
    return Judgment(
        key=digest(work.run, work.round, member.name, a, b, first, aspect, source, reader, reading.failure, *vouched),
        run=work.run,
        round=work.round,
        judge=member.name,
        judge_model=call.model if call else "",
        kind=member.judge.kind,
        prompt_key=matchup.prompt.key,
        candidate_a=a,
        candidate_b=b,
        shown_first=first,
        aspect=aspect,
        verdict=reading.verdict,
        p_a=reading.p_a,
        score=reading.score,
        score_low=reading.score_low,
        score_high=reading.score_high,
        detail=dict(reading.detail) if reading.detail else None,
        canary=matchup.canary is not None,
        canary_name=matchup.canary,
        batch=shown.batch,
        failure=reading.failure,
        call_key=call.key if call else None,
        reader=reader,
        at=now(),
    )


# ------------------------------------------------------------------------------------------------- judges that vote


def _held(work: Work, member: PanelMember) -> Votes:
    """The votes from before by this reader, read once for all parts."""
    reader = reader_of(cast("Judge", member.judge))
    where = {"run": work.run, "round": work.round, "judge": member.name, "reader": reader, "failure": None}
    found: defaultdict[Place, list[Judgment]] = defaultdict(list)
    for row in work.store.rows(Judgment, where):
        found[row.candidate_a, row.candidate_b].append(row)
    return dict(found)


def _vote(
    work: Work, member: PanelMember, judge: Judge, matchups: Sequence[Matchup], held: Votes
) -> Iterator[Judgment]:
    """Votes held from before, then new ones for the matchups that have none, so many in one commit."""
    fresh = []
    for matchup in matchups:
        known = held.get(_place(matchup))
        if known is None:
            fresh.append(matchup)
        else:
            yield from known
    console.expect(work.progress, len(fresh))
    for start in range(0, len(fresh), COMMIT):
        if work.ended:
            return
        some = fresh[start : start + COMMIT]
        yield from _votes(work, member, judge, some)
        if work.progress is not None:
            work.progress.advance(len(some))


def _until(votes: Iterable[Judgment], work: Work) -> Iterator[Judgment]:
    """The votes, up to the end of all work."""
    for vote in votes:
        yield vote
        if work.ended:
            return


def _place(matchup: Matchup) -> Place:
    return matchup.a.key, matchup.b.key if matchup.b else None


def _votes(work: Work, member: PanelMember, judge: Judge, matchups: Sequence[Matchup]) -> list[Judgment]:
    """The judge's votes as rows of this panel; one by one when it raises, so that a bad row fails alone."""
    try:
        votes = list(_until(judge.vote(matchups), work))
    except FactoryError:
        raise
    except Exception as fault:  # noqa: BLE001 - whatever a judge raises, the other rows are judged
        if len(matchups) == 1:
            return [_judgment(work, member, Shown(matchups[0], ""), _broken("judge_error", fault))]
        return [row for matchup in matchups for row in _votes(work, member, judge, [matchup])]
    by_place: defaultdict[Place, list[Judgment]] = defaultdict(list)
    for vote in votes:
        by_place[vote.candidate_a, vote.candidate_b].append(vote)
    return [row for matchup in matchups for row in _adopted(work, member, matchup, by_place[_place(matchup)])]


def _adopted(work: Work, member: PanelMember, matchup: Matchup, votes: Sequence[Judgment]) -> list[Judgment]:
    """Votes on one matchup under this panel's run, round and name; a failure where the judge was silent, unless it is
    `partial`: asked about some matchups only, as people are."""
    if not votes and getattr(member.judge, "partial", False):
        return []
    if not votes:
        return [_judgment(work, member, Shown(matchup, ""), Reading(failure="no_vote"))]
    fields = ("aspect", "verdict", "p_a", "score", "score_low", "score_high", "detail", "failure")
    rows = [
        _judgment(work, member, Shown(matchup, ""), Reading(**{name: getattr(v, name) for name in fields}))
        for v in votes
    ]
    return [replace(row, judge_model=vote.judge_model) for row, vote in zip(rows, votes, strict=True)]


def _broken(kind: str, fault: Exception) -> Reading:
    return Reading(failure=kind, detail={"why": f"{type(fault).__name__}: {fault}"[:200]})


# -------------------------------------------------------------------------------------------- judges that ask a model


def _ask(
    work: Work, member: PanelMember, judge: LLMJudge, engine: Engine, shown: Sequence[Shown], done: Done
) -> Iterator[Judgment]:
    """Ask about every matchup, then the follow-ups that the readings call for, until there are none."""
    told: dict[int, list[Reading]] = {place: [] for place in range(len(shown))}
    while told and not work.ended:
        asks: list[tuple[int, Ask]] = []
        for place, earlier in told.items():
            found = _asks(judge, shown[place].matchup, earlier)
            if isinstance(found, Reading):
                yield _judgment(work, member, shown[place], found)
            else:
                asks.extend((place, ask) for ask in found)
        said: dict[int, list[Reading]] = {}  # by place among the asks: what follows must not depend on who was faster
        for number, call in _answers(work, engine, [ask for _, ask in asks], done):
            place, ask = asks[number]
            said[number] = readings = _read(judge, ask, call)
            for reading in filter(_says_something, readings):
                yield _judgment(work, member, shown[place], reading, ask, call)
        new: defaultdict[int, list[Reading]] = defaultdict(list)
        for number in sorted(said):
            new[asks[number][0]].extend(said[number])
        told = {place: [*told[place], *readings] for place, readings in new.items() if readings}


def _asks(judge: LLMJudge, matchup: Matchup, earlier: Sequence[Reading]) -> list[Ask] | Reading:
    """What the judge asks; a failure where it cannot. A matchup that cannot be asked about fails alone."""
    try:
        return judge.asks(matchup, earlier)
    except FactoryError:
        raise
    except CannotAsk as fault:
        return Reading(failure=fault.kind, detail={"why": str(fault)[:200]})
    except Exception as fault:  # noqa: BLE001 - whatever a judge raises, the other rows are judged
        return _broken("judge_error", fault)


def _says_something(reading: Reading) -> bool:
    """Is it a verdict, a score or a failure, and not a step on the way to one?"""
    return any(said is not None for said in (reading.verdict, reading.score, reading.failure))


def _answers(work: Work, engine: Engine, asks: Sequence[Ask], done: Done) -> Iterator[tuple[int, Call]]:
    """The place of each ask with its call. Equal questions (candidates with the same text) are paid for once."""
    places: defaultdict[int, list[int]] = defaultdict(list)
    requests = []
    for number, ask in enumerate(asks):
        request = replace(ask.request, tag=ask.matchup.prompt.key)
        requests.append(request)
        places[id(request)].append(number)
    left = sum(request.n for request in requests)
    console.expect(work.progress, left)
    with _Turn(work, engine) as turn:
        for request, call, reused in answer(
            work.store,
            engine,
            requests,
            run=work.run,
            round=work.round,
            purpose="judge",
            retry_failed=work.retry_failed,
            progress=work.progress,
            claims=work.claims,
            budget=work.budget,
        ):
            done.pay(call, reused=reused)
            left -= 1
            if left < turn.tail:
                turn.end()
            for number in places[id(request)]:
                yield number, call


class _Turn:
    """This thread's turn with an engine. One that can be shared is given to the next as soon as there are not enough
    answers left to keep it busy: its connections are never idle, and answers still come in bursts."""

    def __init__(self, work: Work, engine: Engine) -> None:
        self.lock, self.held = work.locks[id(engine)], False
        self.tail = TAIL * getattr(engine, "concurrency", 1) if is_shared(engine) else 0

    def __enter__(self) -> _Turn:
        self.lock.acquire()
        self.held = True
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Let the next one have the engine."""
        if self.held:
            self.held = False
            self.lock.release()


def _read(judge: LLMJudge, ask: Ask, call: Call) -> list[Reading]:
    """What the judge reads from a call. A reader that raises has read nothing."""
    try:
        return judge.read(ask, completion_of(ask.request, call))
    except Exception as fault:  # noqa: BLE001 - a reader promises not to raise; one that does fails this row alone
        return [_broken("reader_error", fault)]


def completion_of(request: Request, call: Call) -> Completion:
    """A kept call as the completion that it was."""
    failure = None
    if call.failure is not None:
        failure = Failure(call.failure, call.failure_detail or "", call.passing)
    return Completion(
        request=request,
        sample=call.sample,
        text=call.text,
        finish_reason=call.finish_reason,
        prompt_tokens=call.prompt_tokens,
        completion_tokens=call.completion_tokens,
        logprob=call.logprob,
        answer_logprobs=call.answer_logprobs,
        cost=call.cost,
        latency=call.latency,
        failure=failure,
    )


# ------------------------------------------------------------------------------------------------------------ counting


def _count(work: Work, report: JudgeReport, parts: Sequence[Done]) -> None:
    """What the judge's rows of this call come to."""
    for done in parts:
        report.judgments += done.new
        report.calls += done.calls
        report.reused += done.reused
        report.tokens += done.tokens
        report.cost = None if report.cost is None or done.cost is None else report.cost + done.cost
    rows = _as_kept(work, report, [row for done in parts for row in done.rows])
    panel = verdicts.read(rows, work.tie_margin, quarantine=False)
    scores = panel.scores.get(report.judge, {})
    pairs = [verdict for verdict in panel.pairs.get(report.judge, {}).values() if verdict is not None]
    report.verdicts = len(pairs) + sum(score is not None for score in scores.values())
    report.ties = sum(verdict.verdict == "tie" for verdict in pairs)
    report.flips = sum(bool(verdict.flipped) for verdict in pairs)
    report.failures = dict(sorted(Counter(row.failure for row in rows if row.failure and not row.canary).items()))
    seen = verdicts.canaries(rows, work.tie_margin).get(report.judge, [])
    report.canaries = len(seen)
    report.fooled = sum(canary.fooled is True for canary in seen)
    left_out = verdicts.quarantined(rows, work.tie_margin)
    report.quarantined = sum(row.batch in left_out and not row.canary for row in verdicts.latest(rows))
    report.quarantine = "; ".join(sorted({found.why() for found in left_out.values()}))


def _as_kept(work: Work, report: JudgeReport, rows: list[Judgment]) -> list[Judgment]:
    """The rows as the store has them: one held from before may belong to an earlier batch."""
    if report.judgments == len(rows):
        return rows
    kept = {
        row.key: row for row in work.store.rows(Judgment, {"run": work.run, "round": work.round, "judge": report.judge})
    }
    return [kept.get(row.key, row) for row in rows]
