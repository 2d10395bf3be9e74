"""Labelling: candidates go before a panel of judges, and what each says is kept as judgments.

Programs and people `vote`; a language model is asked through `factory.calls`, where each answer is durable before it
is read, so that a killed run pays for nothing twice and a changed reader re-reads what is held. The panel judges in
its order: a member whose matchups depend on scores comes after the pointwise judge that gives them. A judge or a row
that fails ends itself alone; an endpoint that is gone ends the call.
"""

from __future__ import annotations

import inspect
import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeGuard, cast

from factory import crash, matchups as choosing, verdicts
from factory.calls import answer
from factory.faults import EndpointError, FactoryError, IntegrityError, LockedError
from factory.judges import CannotAsk, Judge, LLMJudge, judges
from factory.judges.canaries import SHARE, plant
from factory.schema import (
    Ask,
    Call,
    Candidate,
    Completion,
    Failure,
    Judgment,
    Matchup,
    Prompt,
    Reading,
    Request,
    digest,
    now,
)

if TYPE_CHECKING:
    from factory.console import Progress
    from factory.engines import Engine
    from factory.store import Store

AT_ONCE = 4096  # matchups in memory as rendered questions
COMMIT = 64  # judgments in one commit
COMMIT_SECONDS = 2.0  # a commit waits no longer than this for more, so that readers see the work as it goes


@dataclass(frozen=True)
class PanelMember:
    """One judge of a panel: its name in the tables, the engine it asks (none for a program or a person), and its own
    choice of matchups where it differs from the panel's."""

    name: str
    judge: Judge | LLMJudge
    engine: Engine | None = None
    matchups: str | None = None
    prompts: int | None = None  # it sees the candidates of at most so many prompts, drawn by the seed

    @classmethod
    def of(
        cls,
        judge: str,
        *,
        name: str | None = None,
        engine: Engine | None = None,
        matchups: str | None = None,
        prompts: int | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> PanelMember:
        """A registered judge by name, with its options. FactoryError names an unknown judge or option."""
        build = judges.get(judge)
        called = name or judge
        try:
            inspect.signature(build).bind(name=called, **(options or {}))
        except TypeError as fault:
            known = ", ".join(p for p in inspect.signature(build).parameters if p != "name")
            raise FactoryError(f"judge {judge!r}: {fault}", todo=f"its options are {known}") from fault
        return cls(called, build(name=called, **(options or {})), engine, matchups, prompts)


@dataclass
class JudgeReport:
    """What one judge did in one call of `label`, counting what was answered now and what was held already."""

    judge: str
    kind: str
    matchups: int = 0
    verdicts: int = 0  # candidates scored, or pairs decided or tied
    ties: int = 0
    flips: int = 0  # pairs whose verdict changed with the order of showing
    failures: dict[str, int] = field(default_factory=dict)  # judgments by kind of failure
    canaries: int = 0
    fooled: int = 0  # canaries preferred to a real answer
    judgments: int = 0  # rows new in the store
    calls: int = 0  # answers paid for
    reused: int = 0  # answers held already
    tokens: int = 0  # prompt and completion tokens paid for
    cost: float | None = 0.0  # US dollars; None when a price is unknown
    seconds: float = 0.0
    fault: str | None = None  # what ended this judge early


@dataclass
class LabelReport:
    """What a call of `label` did."""

    prompts: int
    candidates: int
    failed_candidates: int
    judges: list[JudgeReport]

    @property
    def tokens(self) -> int:
        """Tokens paid for by all judges."""
        return sum(report.tokens for report in self.judges)

    @property
    def failures(self) -> int:
        """Judgments that failed, and judges that did."""
        return sum(sum(r.failures.values()) + (r.fault is not None) for r in self.judges)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def rows(self) -> list[dict[str, Any]]:
        """One line for each judge, for a table; its failures are one number."""
        return [asdict(report) | {"failures": sum(report.failures.values())} for report in self.judges]


@dataclass(frozen=True)
class Work:
    """What is to be judged: the prompts' candidates of one kind, and where the judgments belong."""

    store: Store
    run: str
    round: int
    seed: int
    canary_share: float
    tie_margin: float
    retry_failed: bool
    prompts: Mapping[str, Prompt]
    candidates: Mapping[str, Sequence[Candidate]]  # by prompt key; both in order of key
    progress: Progress | None


def label(
    store: Store,
    panel: Sequence[PanelMember],
    *,
    run: str,
    round: int = 0,
    matchups: str = "all",
    split: str = "train",
    kind: str = "sample",
    canary_share: float = SHARE,
    tie_margin: float = verdicts.TIE_MARGIN,
    seed: int = 0,
    retry_failed: bool = False,
    progress: Progress | None = None,
) -> LabelReport:
    """Put the candidates of a run, round and split before each judge of the panel, in its order.

    `matchups` chooses the pairs that pairwise judges see (see `factory.matchups`). What is held already is not asked
    again. A fault of one judge is in its report; EndpointError and faults of the store end the call, with all finished
    work kept.
    """
    wanted = _plan(panel, matchups)
    prompts, candidates = _candidates(store, {"run": run, "round": round, "split": split, "kind": kind})
    work = Work(
        store=store,
        run=run,
        round=round,
        seed=seed,
        canary_share=canary_share,
        tie_margin=tie_margin,
        retry_failed=retry_failed,
        prompts=prompts,
        candidates=candidates,
        progress=progress,
    )
    lead: str | None = None
    reports = []
    for member, choice in zip(panel, wanted, strict=True):
        reports.append(_judge(work, member, choice, lead))
        if lead is None and member.judge.kind == "pointwise":
            lead = member.name
    everyone = [c for group in candidates.values() for c in group]
    return LabelReport(len(candidates), len(everyone), sum(c.failure is not None for c in everyone), reports)


def _plan(panel: Sequence[PanelMember], matchups: str) -> list[choosing.Choice]:
    """Each member's choice of matchups, with every mistake in the panel found before anything is asked."""
    names = [member.name for member in panel]
    if not panel or len(set(names)) < len(names):
        raise FactoryError(
            f"a panel needs judges with different names, not [{', '.join(names)}]", todo="give each judge its own name"
        )
    wanted = [choosing.parse(member.matchups or matchups) for member in panel]
    scored = False
    for member, choice in zip(panel, wanted, strict=True):
        _check(member, choice, scored)
        scored = scored or member.judge.kind == "pointwise"
    return wanted


def _check(member: PanelMember, choice: choosing.Choice, scored: bool) -> None:
    if member.judge.kind == "pairwise" and choosing.needs_scores(choice) and not scored:
        todo = "put a verifier or a rating judge before it, or choose all or random:k"
        raise FactoryError(f"{choice.name!r} needs the scores of a pointwise judge before {member.name!r}", todo=todo)
    if asks_model(member.judge) and member.engine is None:
        raise FactoryError(f"judge {member.name!r} asks a model, and no engine was given", todo="give it an engine")


def asks_model(judge: Judge | LLMJudge) -> TypeGuard[LLMJudge]:
    """Does the judge ask a model, rather than vote by itself?"""
    return hasattr(judge, "asks")


def _candidates(store: Store, where: Mapping[str, Any]) -> tuple[dict[str, Prompt], dict[str, list[Candidate]]]:
    """Prompts and their candidates, in order of key. FactoryError when there are none."""
    groups: defaultdict[str, list[Candidate]] = defaultdict(list)
    for candidate in sorted(choosing.current(store.rows(Candidate, where)), key=lambda c: (c.prompt_key, c.key)):
        groups[candidate.prompt_key].append(candidate)
    if not groups:
        said = ", ".join(f"{name} {value}" for name, value in where.items())
        raise FactoryError(
            f"there are no candidates with {said}", where=str(store.folder), todo="factory generate makes them"
        )
    prompts = {prompt.key: prompt for prompt in store.rows(Prompt, {"key": list(groups)})}
    lost = [key for key in groups if key not in prompts]
    if lost:
        raise IntegrityError(
            f"{len(lost)} candidates' prompts are not in the store, such as {lost[0]}",
            where=str(store.folder),
            todo="factory doctor checks the store; add the prompts again with factory prompts add",
        )
    return prompts, dict(groups)


# ------------------------------------------------------------------------------------------------------- one judge


def _judge(work: Work, member: PanelMember, choice: choosing.Choice, lead: str | None) -> JudgeReport:
    """Let one judge do its matchups, and count what it said."""
    report = JudgeReport(member.name, member.judge.kind)
    began = time.monotonic()
    made: list[Judgment] = []
    ended: list[FactoryError] = []
    matchups = _matchups(work, member, choice, lead)
    report.matchups = sum(m.canary is None for m in matchups)
    for batch in _batches(_until_fault(_judgments(work, member, matchups, report), ended), COMMIT, COMMIT_SECONDS):
        report.judgments += work.store.append("judgments", batch)
        crash.point("labelling.after_append")
        made.extend(batch)
    for fault in ended:
        if isinstance(fault, EndpointError | IntegrityError | LockedError):
            raise fault
        report.fault = fault.text()
    report.seconds = time.monotonic() - began
    _count(report, made, work.tie_margin)
    return report


def _until_fault(judgments: Iterator[Judgment], ended: list[FactoryError]) -> Iterator[Judgment]:
    """The judgments up to a fault, which goes to `ended`, so that those before it are written first."""
    try:
        yield from judgments
    except FactoryError as fault:
        ended.append(fault)


def _matchups(work: Work, member: PanelMember, choice: choosing.Choice, lead: str | None) -> list[Matchup]:
    """The judge's matchups in order of key; then canaries, for judges that ask a model: nobody talks a program over."""
    shown: list[tuple[str, Candidate, Candidate | None]]
    judge, seen = member.judge, _drawn(work, member.prompts)
    if judge.kind == "pointwise":
        shown = [(key, c, None) for key, group in seen.items() for c in group]
    else:
        scores = _scores(work, lead) if choosing.needs_scores(choice) else {}
        shown = [
            (key, a, b) for key, group in seen.items() for a, b in choosing.choose(group, choice, scores, work.seed)
        ]
    matchups = [Matchup(work.prompts[key], a, b, secret=work.store.secret) for key, a, b in shown]
    usable = [m for m in matchups if m.a.failure is None]
    return matchups + (plant(usable, work.canary_share, work.seed) if asks_model(judge) else [])


def _drawn(work: Work, most: int | None) -> Mapping[str, Sequence[Candidate]]:
    """The candidates of at most `most` prompts, in order of key."""
    if most is None or most >= len(work.candidates):
        return work.candidates
    kept = set(sorted(work.candidates, key=lambda key: digest(work.seed, "seen", key))[:most])
    return {key: group for key, group in work.candidates.items() if key in kept}


def _scores(work: Work, lead: str | None) -> Mapping[str, verdicts.Score | None]:
    """What the pointwise judge that came first said."""
    held = work.store.rows(Judgment, {"run": work.run, "round": work.round, "judge": lead})
    return verdicts.read(held).scores.get(lead or "", {})


def _judgments(work: Work, member: PanelMember, matchups: Sequence[Matchup], report: JudgeReport) -> Iterator[Judgment]:
    """All that the judge says, as it comes. A candidate that failed gets a row that says so and is shown to nobody."""
    for matchup in matchups:
        if matchup.a.failure is not None:
            yield _judgment(work, member, matchup, Reading(failure="candidate_failed"))
    usable = [m for m in matchups if m.a.failure is None]
    if asks_model(member.judge) and member.engine is not None:
        for some in _batches(usable, AT_ONCE):
            yield from _ask(work, member, member.judge, member.engine, some, report)
    elif not asks_model(member.judge):
        yield from _vote(work, member, cast("Judge", member.judge), usable)


def _judgment(
    work: Work,
    member: PanelMember,
    matchup: Matchup,
    reading: Reading,
    ask: Ask | None = None,
    call: Call | None = None,
) -> Judgment:
    """A reading as a row. Its key is the same whenever the same answer is read by the same reader."""
    a, b = matchup.a.key, matchup.b.key if matchup.b else None
    first, aspect = (ask.shown_first, reading.aspect or ask.aspect) if ask else (None, reading.aspect)
    reader = _reader(member.judge)
    source = (call.key, call.attempt) if call else None
    return Judgment(
        key=digest(work.run, work.round, member.name, a, b, first, aspect, source, reader, reading.failure),
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
        failure=reading.failure,
        call_key=call.key if call else None,
        reader=reader,
        at=now(),
    )


def _reader(judge: Judge | LLMJudge) -> str:
    return str(getattr(judge, "reader", "1"))


# ------------------------------------------------------------------------------------------------- judges that vote


def _vote(work: Work, member: PanelMember, judge: Judge, matchups: Sequence[Matchup]) -> Iterator[Judgment]:
    """Votes held from before, then new ones for the matchups that have none by this reader."""
    where = {"run": work.run, "round": work.round, "judge": member.name, "reader": _reader(judge), "failure": None}
    held: defaultdict[tuple[str, str | None], list[Judgment]] = defaultdict(list)
    for row in work.store.rows(Judgment, where):
        held[row.candidate_a, row.candidate_b].append(row)
    fresh = []
    for matchup in matchups:
        known = held.get(_place(matchup))
        if known is None:
            fresh.append(matchup)
        else:
            yield from known
    for some in _batches(fresh, COMMIT):
        yield from _votes(work, member, judge, some)
        if work.progress is not None:
            work.progress.advance(len(some))


def _place(matchup: Matchup) -> tuple[str, str | None]:
    return matchup.a.key, matchup.b.key if matchup.b else None


def _votes(work: Work, member: PanelMember, judge: Judge, matchups: Sequence[Matchup]) -> list[Judgment]:
    """The judge's votes as rows of this panel; one by one when it raises, so that a bad row fails alone."""
    try:
        votes = list(judge.vote(matchups))
    except FactoryError:
        raise
    except Exception as fault:  # noqa: BLE001 - whatever a judge raises, the other rows are judged
        if len(matchups) == 1:
            return [_judgment(work, member, matchups[0], _broken("judge_error", fault))]
        return [row for matchup in matchups for row in _votes(work, member, judge, [matchup])]
    by_place: defaultdict[tuple[str, str | None], list[Judgment]] = defaultdict(list)
    for vote in votes:
        by_place[vote.candidate_a, vote.candidate_b].append(vote)
    return [row for matchup in matchups for row in _adopted(work, member, matchup, by_place[_place(matchup)])]


def _adopted(work: Work, member: PanelMember, matchup: Matchup, votes: Sequence[Judgment]) -> list[Judgment]:
    """Votes on one matchup under this panel's run, round and name; a failure where the judge was silent, unless it is
    `partial`: asked about some matchups only, as people are."""
    if not votes and getattr(member.judge, "partial", False):
        return []
    if not votes:
        return [_judgment(work, member, matchup, Reading(failure="no_vote"))]
    fields = ("aspect", "verdict", "p_a", "score", "score_low", "score_high", "detail", "failure")
    rows = [_judgment(work, member, matchup, Reading(**{name: getattr(v, name) for name in fields})) for v in votes]
    return [replace(row, judge_model=vote.judge_model) for row, vote in zip(rows, votes, strict=True)]


def _broken(kind: str, fault: Exception) -> Reading:
    return Reading(failure=kind, detail={"why": f"{type(fault).__name__}: {fault}"[:200]})


# -------------------------------------------------------------------------------------------- judges that ask a model


def _ask(
    work: Work, member: PanelMember, judge: LLMJudge, engine: Engine, matchups: Sequence[Matchup], report: JudgeReport
) -> Iterator[Judgment]:
    """Ask about every matchup, then the follow-ups that the readings call for, until there are none."""
    told: dict[int, list[Reading]] = {place: [] for place in range(len(matchups))}
    while told:
        asks: list[tuple[int, Ask]] = []
        for place, earlier in told.items():
            try:
                asks.extend((place, ask) for ask in judge.asks(matchups[place], earlier))
            except FactoryError:
                raise
            except CannotAsk as fault:
                reading = Reading(failure=fault.kind, detail={"why": str(fault)[:200]})
                yield _judgment(work, member, matchups[place], reading)
            except Exception as fault:  # noqa: BLE001 - a matchup that cannot be asked about fails alone
                yield _judgment(work, member, matchups[place], _broken("judge_error", fault))
        new: defaultdict[int, list[Reading]] = defaultdict(list)
        for place, ask, call in _answers(work, engine, asks, report):
            readings = _read(judge, ask, call)
            new[place].extend(readings)
            for reading in filter(_says_something, readings):
                yield _judgment(work, member, matchups[place], reading, ask, call)
        told = {place: [*told[place], *readings] for place, readings in new.items() if readings}


def _says_something(reading: Reading) -> bool:
    """Is it a verdict, a score or a failure, and not a step on the way to one?"""
    return any(said is not None for said in (reading.verdict, reading.score, reading.failure))


def _answers(
    work: Work, engine: Engine, asks: Sequence[tuple[int, Ask]], report: JudgeReport
) -> Iterator[tuple[int, Ask, Call]]:
    """Each ask with its call. Equal questions (candidates with the same text) are asked once."""
    same: defaultdict[str, list[tuple[int, Ask]]] = defaultdict(list)
    for place, ask in asks:
        content = digest(asdict(replace(ask.request, tag="")))
        same[f"{ask.matchup.prompt.key}:{content}"].append((place, ask))
    requests = [replace(group[0][1].request, tag=tag) for tag, group in same.items()]
    began = now()
    for request, call in answer(
        work.store,
        engine,
        requests,
        run=work.run,
        round=work.round,
        purpose="judge",
        retry_failed=work.retry_failed,
        progress=work.progress,
    ):
        _pay(report, call, began)
        for place, ask in same[request.tag]:
            yield place, ask, call


def _pay(report: JudgeReport, call: Call, began: datetime) -> None:
    """Count what the answer cost, unless it was held from before."""
    if call.at < began:
        report.reused += 1
        return
    report.calls += 1
    report.tokens += call.prompt_tokens + call.completion_tokens
    report.cost = None if report.cost is None or call.cost is None else report.cost + call.cost


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


def _batches(items: Iterable[Any], size: int, seconds: float = math.inf) -> Iterator[list[Any]]:
    """Lists of at most `size`, the last one shorter; one that took `seconds` to come together is given as it is."""
    batch: list[Any] = []
    began = time.monotonic()
    for item in items:
        batch.append(item)
        if len(batch) == size or time.monotonic() - began >= seconds:
            yield batch
            batch, began = [], time.monotonic()
    if batch:
        yield batch


def _count(report: JudgeReport, made: Sequence[Judgment], tie_margin: float) -> None:
    """What the judge's rows of this call come to."""
    panel = verdicts.read(made, tie_margin)
    scores = panel.scores.get(report.judge, {})
    pairs = [verdict for verdict in panel.pairs.get(report.judge, {}).values() if verdict is not None]
    report.verdicts = len(pairs) + sum(score is not None for score in scores.values())
    report.ties = sum(verdict.verdict == "tie" for verdict in pairs)
    report.flips = sum(bool(verdict.flipped) for verdict in pairs)
    report.failures = dict(sorted(Counter(row.failure for row in made if row.failure and not row.canary).items()))
    seen = verdicts.canaries(made, tie_margin).get(report.judge, [])
    report.canaries = len(seen)
    report.fooled = sum(canary.fooled is True for canary in seen)
