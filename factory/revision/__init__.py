"""Revision: the supervised stage of Constitutional AI (Bai et al. 2022, arXiv 2212.08073, section 3): each draft is
criticised by a principle drawn from a constitution and written anew, `rounds` times over.

A run's samples are the drafts. Every step stays a candidate with its parent: draft <- critique <- revision <- critique
<- revision. A step that failed is a row with its reason and ends its chain there; what came before it stands. Answers
are paid for through `factory.calls`, so that a killed run pays for nothing twice.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from factory import crash
from factory.calls import Answered, Claims, answer
from factory.faults import FactoryError, IntegrityError
from factory.generation import candidate_of
from factory.judges import rubric
from factory.labelling.matchups import current, same_text
from factory.labelling.panel import is_shared
from factory.revision import critiques
from factory.schema import Call, Candidate, Messages, Prompt, Request, Sampling, digest, text_of
from factory.threads import side_by_side

if TYPE_CHECKING:
    from collections.abc import Callable

    from factory.budget import Budget
    from factory.console import Progress
    from factory.engines import Engine
    from factory.store import Store

Purpose = Literal["critique", "revise"]
_KINDS = {"critique": "critique", "revise": "revision"}

READER = "1"  # raise it when critiques and revisions are read differently
DRAFTS = ("sample", "draft")
CONSTITUTION = "helpful-honest-harmless"
SAMPLING = Sampling(temperature=0.7, max_tokens=512)
AT_ONCE = 4096  # chains in memory with rendered questions
WIDTH = (
    4  # parts at work at once, where threads may share the engine: one revises while another waits for its critiques
)
COMMIT = 64  # candidates in one commit; until then they can be read from their calls again

# ------------------------------------------------------------------------------------------------------------- chains


class Step(NamedTuple):
    """A critique of an answer, and the answer written anew."""

    critique: Candidate
    revision: Candidate


class Chain(NamedTuple):
    """A draft and the steps from it to its last revision, none of which failed."""

    draft: Candidate
    steps: tuple[Step, ...]

    @property
    def final(self) -> Candidate:
        """The last revision."""
        return self.steps[-1].revision

    @property
    def changed(self) -> bool:
        """Does the last revision say anything else than the draft?"""
        return not same_text(self.draft, self.final)


def chains(candidates: Iterable[Candidate]) -> list[Chain]:
    """The chains among candidates of all kinds, one for each last revision, in order of the drafts' keys.

    What failed is in none: a chain ends with the revision before it. A draft that was revised in several ways (another
    seed, another constitution) begins several chains.
    """
    children: defaultdict[str, list[Candidate]] = defaultdict(list)
    drafts = []
    for candidate in sorted((c for c in candidates if c.failure is None), key=lambda c: c.key):
        if candidate.kind in ("critique", "revision") and candidate.parent is not None:
            children[candidate.parent].append(candidate)
        else:
            drafts.append(candidate)
    return [chain for draft in drafts for chain in _grown(Chain(draft, ()), draft, children)]


def _grown(chain: Chain, last: Candidate, children: Mapping[str, Sequence[Candidate]]) -> Iterator[Chain]:
    """The chain in all its continuations; itself where it has steps and no more follow."""
    steps = [Step(c, r) for c in children.get(last.key, ()) for r in children.get(c.key, ())]
    for step in steps:
        yield from _grown(chain._replace(steps=(*chain.steps, step)), step.revision, children)
    if chain.steps and not steps:
        yield chain


# ------------------------------------------------------------------------------------------------------------- report


@dataclass
class ReviseReport:
    """What a call of `revise` did. Critiques, revisions and failures count all answers, held ones included; calls,
    tokens and cost those paid for now."""

    constitution: str
    prompts: int = 0
    drafts: int = 0
    failed_drafts: int = 0  # they are not revised
    critiques: int = 0  # usable ones
    revisions: int = 0  # usable ones, unchanged included
    unchanged: int = 0  # of them the same as the answer that was criticised
    cut: int = 0  # of them ended by max_tokens, as the answer before was: else it is a failure
    refusals: int = 0  # of them that open as a refusal does, and the answer before did not
    pairs: int = 0  # drafts whose last revision says something else: what draft_revision can pair
    failures: dict[str, int] = field(default_factory=dict)  # steps that failed, "critique: refused" ...
    principles: dict[str, int] = field(default_factory=dict)  # critiques asked for by each
    written: int = 0  # candidates new in the store
    calls: int = 0
    reused: int = 0
    tokens: int = 0  # prompt and completion tokens
    cost: float | None = 0.0  # US dollars; None when a price is unknown
    seconds: float = 0.0

    @property
    def failed(self) -> int:
        """Steps that failed."""
        return sum(self.failures.values())

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"seconds": round(self.seconds, 3)}

    def count(self, row: Candidate, before: Candidate) -> None:
        """Count a step; `before`: the answer that was criticised."""
        if row.failure is not None:
            name = f"{row.kind}: {row.failure}"
            self.failures[name] = self.failures.get(name, 0) + 1
        elif row.kind == "critique":
            self.critiques += 1
        else:
            self.revisions += 1
            self.unchanged += same_text(row, before)
            self.cut += row.finish_reason == "length"
            self.refusals += critiques.refuses(row.text) and not critiques.refuses(before.text)

    def pay(self, call: Call, *, reused: bool) -> None:
        """Count what an answer cost now; a failure without a price cost nothing."""
        if reused:
            self.reused += 1
            return
        self.calls += 1
        self.tokens += call.prompt_tokens + call.completion_tokens
        cost = 0.0 if call.cost is None and call.failure is not None else call.cost
        self.cost = None if self.cost is None or cost is None else self.cost + cost

    def add(self, part: ReviseReport) -> None:
        """Add what a part of the work came to."""
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(part, name))
        self.cost = None if self.cost is None or part.cost is None else self.cost + part.cost
        self.failures = _summed(self.failures, part.failures)
        self.principles = _summed(self.principles, part.principles)


_SUMS = ("critiques", "revisions", "unchanged", "cut", "refusals", "pairs", "written", "calls", "reused", "tokens")


def _summed(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    """Both counts together, by name."""
    return dict(sorted((Counter(one) + Counter(other)).items()))


# ------------------------------------------------------------------------------------------------------------- revise


class Link(NamedTuple):
    """Where a chain stands: `answer` is what is criticised next, the draft or its last revision."""

    prompt: Prompt
    draft: Candidate
    answer: Candidate


class Turn(NamedTuple):
    """One question on the way: its conversation, its principle, and what the answer's `parent` will be."""

    link: Link
    principle: rubric.Principle
    messages: Messages
    parent: Candidate


@dataclass(frozen=True)
class Work:
    """What the steps of one call share."""

    store: Store
    engine: Engine
    run: str
    round: int
    principles: Sequence[rubric.Principle]
    examples: Messages
    sampling: Sampling
    seed: int
    retry_failed: bool
    budget: Budget | None
    report: ReviseReport
    tell: Callable[[Answered], None]
    claims: Claims


def revise(
    store: Store,
    engine: Engine,
    *,
    run: str,
    round: int = 0,
    constitution: str = CONSTITUTION,
    principles: Sequence[str] | str = (),
    rounds: int = 1,
    examples: int | None = None,
    split: str = "train",
    limit: int | None = None,
    sampling: Sampling = SAMPLING,
    seed: int = 0,
    retry_failed: bool = False,
    budget: Budget | None = None,
    progress: Progress | None = None,
) -> ReviseReport:
    """Criticise and revise the drafts of a run, round and split (of at most `limit` prompts), `rounds` times over.

    `principles` narrows the constitution to those named, `examples` its worked examples to the first so many (all by
    default). Each step goes by one principle, drawn by seed and weight; a
    chain meets a principle again only when it has met all of them. What the store holds is not asked for again.
    FactoryError: no drafts, or an unknown constitution or principle. What the engine raises when it cannot go on, and
    BudgetError, come through; all that was answered until then is kept.
    """
    found, chosen = _chosen(constitution, principles, rounds)
    clock = time.monotonic()
    report = ReviseReport(found.name)
    links = _links(store, {"run": run, "round": round, "split": split, "kind": list(DRAFTS)}, limit, report)
    work = Work(
        store=store,
        engine=engine,
        run=run,
        round=round,
        principles=chosen,
        examples=critiques.shown(found, examples, store.secret),
        sampling=sampling,
        seed=seed,
        retry_failed=retry_failed,
        budget=budget,
        report=report,
        tell=_teller(progress),
        claims=Claims(),
    )
    width = WIDTH if is_shared(engine) else 1
    size = min(AT_ONCE, math.ceil(len(links) / width)) or 1
    tasks = [partial(_part, work, links[at : at + size], rounds) for at in range(0, len(links), size)]
    for part in side_by_side(tasks, width, work.claims.end):
        report.add(part)
    report.seconds = time.monotonic() - clock
    return report


def plan(
    store: Store,
    *,
    run: str,
    round: int = 0,
    constitution: str = CONSTITUTION,
    principles: Sequence[str] | str = (),
    rounds: int = 1,
    split: str = "train",
    limit: int | None = None,
    sampling: Sampling = SAMPLING,
) -> dict[str, Any]:
    """What `revise` would ask for at most, as plain JSON values; asks nothing. Faults as there."""
    _, chosen = _chosen(constitution, principles, rounds)
    report = ReviseReport(constitution)
    drafts = len(_links(store, {"run": run, "round": round, "split": split, "kind": list(DRAFTS)}, limit, report))
    calls = 2 * rounds * drafts
    counts = {"prompts": report.prompts, "drafts": drafts, "principles": len(chosen)}
    return counts | {"calls_at_most": calls, "tokens_written_at_most": calls * sampling.max_tokens}


def _chosen(
    constitution: str, principles: Sequence[str] | str, rounds: int
) -> tuple[rubric.Constitution, Sequence[rubric.Principle]]:
    if rounds < 1:
        raise FactoryError(f"{rounds} rounds of critique and revision are none", todo="ask for one or more")
    found = rubric.load(constitution)
    return found, found.choose(principles, "critique")


def _teller(progress: Progress | None) -> Callable[[Answered], None]:
    """Tells the progress of each answer, one at a time."""
    turn = threading.Lock()

    def tell(found: Answered) -> None:
        tokens = 0 if found.reused else found.call.completion_tokens
        if progress is not None:
            with turn:
                progress.advance(failed=int(found.call.failure is not None), reused=int(found.reused), tokens=tokens)

    return tell


def _part(work: Work, links: Sequence[Link], rounds: int) -> ReviseReport:
    """All steps of some chains."""
    work = replace(work, report=ReviseReport(work.report.constitution))
    going_on = list(links)
    last = {link.draft.key: link for link in links}
    for step in range(rounds):
        going_on = _step(work, going_on, step)
        last |= {link.draft.key: link for link in going_on}
    work.report.pairs += sum(not same_text(link.draft, link.answer) for link in last.values())
    return work.report


def _links(store: Store, where: Mapping[str, Any], limit: int | None, report: ReviseReport) -> list[Link]:
    """The drafts with their prompts, in order of key; those that failed are counted and left out."""
    rows = sorted(current(store.rows(Candidate, where)), key=lambda c: (c.prompt_key, c.key))
    kept = set(sorted({row.prompt_key for row in rows})[:limit])
    rows = [row for row in rows if row.prompt_key in kept]
    if not rows:
        raise FactoryError(
            f"run {where['run']!r}, round {where['round']}, has no answers to prompts in split {where['split']!r}",
            where=str(store.folder),
            todo="factory generate makes them",
        )
    prompts = {prompt.key: prompt for prompt in store.rows(Prompt, {"key": list(kept)})}
    if lost := sorted(kept - set(prompts)):
        raise IntegrityError(
            f"{len(lost)} candidates' prompts are not in the store, such as {lost[0]}",
            where=str(store.folder),
            todo="factory doctor checks the store; add the prompts again with factory prompts add",
        )
    drafts = [row for row in rows if row.failure is None]
    report.prompts, report.drafts, report.failed_drafts = len(prompts), len(drafts), len(rows) - len(drafts)
    return [Link(prompts[row.prompt_key], row, row) for row in drafts]


def _step(work: Work, links: Sequence[Link], step: int) -> list[Link]:
    """Criticise every answer, then revise it; the chains that go on. One whose step failed has ended."""
    asked = [_criticise(work, link, step) for link in links]
    turns: list[Turn] = []
    going_on: list[Link] = []
    with _keeping(work) as keep:
        for turn, critique in _answers(work, asked, "critique"):
            keep(critique, turn)
            if critique.failure is None:
                turns.append(_revise(turn, critique))
            else:
                keep(_without_critique(critique), turn)
        turns.sort(key=lambda turn: turn.link.answer.key)  # the same work list whatever came first
        for turn, revision in _answers(work, turns, "revise"):
            keep(revision, turn)
            if revision.failure is None:
                going_on.append(turn.link._replace(answer=revision))
    return sorted(going_on, key=lambda link: (link.prompt.key, link.draft.key))


def _criticise(work: Work, link: Link, step: int) -> Turn:
    """The question about a chain's answer, by the principle drawn for this step."""
    lap, place = divmod(step, len(work.principles))
    order = rubric.draw(work.principles, place + 1, work.seed, link.prompt.key, link.draft.sample, lap)
    principle = order[place]
    work.report.principles[principle.name] = work.report.principles.get(principle.name, 0) + 1
    messages = critiques.critique_request(link.prompt, link.answer.text, principle, work.examples, work.store.secret)
    return Turn(link, principle, messages, link.answer)


def _revise(turn: Turn, critique: Candidate) -> Turn:
    """The question that follows a critique."""
    messages = critiques.revision_request(turn.messages, critique.text, turn.principle)
    return turn._replace(messages=messages, parent=critique)


def _answers(work: Work, turns: Sequence[Turn], purpose: Purpose) -> Iterator[tuple[Turn, Candidate]]:
    """Each question with its answer as a candidate, as they come."""
    by_tag = {turn.parent.key: turn for turn in turns}
    requests = [Request(turn.messages, work.sampling, seed=work.seed, tag=tag) for tag, turn in by_tag.items()]
    for found in answer(
        work.store,
        work.engine,
        requests,
        run=work.run,
        round=work.round,
        purpose=purpose,
        retry_failed=work.retry_failed,
        claims=work.claims,
        budget=work.budget,
    ):
        work.report.pay(found.call, reused=found.reused)
        work.tell(found)
        turn = by_tag[found.request.tag]
        yield turn, _read(work, turn, found.call, purpose)


def _read(work: Work, turn: Turn, call: Call, purpose: Purpose) -> Candidate:
    """A call as a critique or a revision. Its log-prob is not kept: it was said in a longer conversation than the
    prompt's."""
    link = turn.link
    if call.failure is not None:
        read = critiques.Read(call.text, call.failure)
    elif purpose == "critique":
        read = critiques.read_critique(call.text, _said(work.examples))
    else:
        shown = [turn.parent.text, *_said(work.examples)]
        read = critiques.read_revision(call.text, link.answer.text, text_of(link.prompt.messages), shown)
    if purpose == "revise" and not read.failure and call.finish_reason == "length" != link.answer.finish_reason:
        read = read._replace(failure="cut")  # chosen over a whole answer it would teach to break off
    kind = _KINDS[purpose]
    row = candidate_of(call, link.prompt, run=work.run, round=work.round, kind=kind, parent=turn.parent.key)
    return replace(
        row,
        key=digest(row.key, turn.parent.key, READER),
        sample=link.draft.sample,
        text=read.text,
        logprob=None,
        failure=read.failure,
        principle=turn.principle.name,
        reader=READER,
    )


def _said(messages: Messages) -> list[str]:
    """What the assistant says in worked examples."""
    return [turn["content"] for turn in messages if turn["role"] == "assistant"]


def _without_critique(critique: Candidate) -> Candidate:
    """The row of a revision that could not be asked for."""
    return replace(
        critique,
        key=digest("revision", critique.key, READER),
        kind="revision",
        parent=critique.key,
        call_key=None,
        text="",
        finish_reason="",
        tokens=0,
        failure="critique_failed",
    )


@contextmanager
def _keeping(work: Work) -> Iterator[Callable[[Candidate, Turn], None]]:
    """Counts and keeps each step, in commits of some, the last when all is done or something ends the work."""
    waiting: list[Candidate] = []

    def commit() -> None:
        crash.point("revise.before_candidates")
        work.report.written += work.store.append(Candidate.TABLE, waiting)
        waiting.clear()

    def keep(row: Candidate, turn: Turn) -> None:
        work.report.count(row, turn.link.answer)
        waiting.append(row)
        if len(waiting) >= COMMIT:
            commit()

    try:
        yield keep
    finally:
        commit()
