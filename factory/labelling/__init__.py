"""Labelling: candidates go before a panel of judges, and what each says is kept as judgments.

Programs and people `vote`; a language model is asked through `factory.calls`, where each answer is durable before it
is read, so that a killed run pays for nothing twice and a changed reader re-reads what is held. The judges of a panel
work side by side; one whose matchups depend on scores waits for the pointwise judge that gives them. A judge or a row
that fails ends itself alone; an endpoint that is gone ends the call. What is written is the same whoever is faster.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from factory import console, verdicts
from factory.faults import FactoryError, IntegrityError
from factory.judges.canaries import SHARE
from factory.labelling import matchups as choosing
from factory.labelling.judging import judge
from factory.labelling.panel import JudgeReport, PanelMember, Work, asks_model, locks_of
from factory.labelling.planning import Planned, planned
from factory.schema import Candidate, Prompt
from factory.threads import side_by_side

if TYPE_CHECKING:
    from factory.budget import Budget
    from factory.console import Progress
    from factory.store import Store

__all__ = ["JudgeReport", "LabelReport", "PanelMember", "Planned", "label", "plan"]


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
        """One line for each judge, for a table: its failures are one number, its fault has a place of its own."""
        rows = [asdict(report) | {"failures": sum(report.failures.values())} for report in self.judges]
        return [{name: value for name, value in row.items() if name != "fault"} for row in rows]


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
    budget: Budget | None = None,
    progress: Progress | None = None,
) -> LabelReport:
    """Put the candidates of a run, round and split before the judges of the panel, which work side by side.

    `matchups` chooses the pairs that pairwise judges see (see `factory.labelling.matchups`); where a choice goes by
    scores, they are those of the first pointwise judge. What is held already is not asked again. A fault of one judge
    is in its report; EndpointError, BudgetError and faults of the store end the call, with all finished work kept.
    """
    wanted = _choices(panel, matchups)
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
        progress=None if progress is None else _InTurn(progress),
        budget=budget,
        locks=locks_of(panel),
    )
    everyone = [c for group in candidates.values() for c in group]
    failed = sum(c.failure is not None for c in everyone)
    return LabelReport(len(candidates), len(everyone), failed, _side_by_side(work, panel, wanted))


def plan(
    store: Store,
    panel: Sequence[PanelMember],
    *,
    run: str,
    round: int = 0,
    matchups: str = "all",
    split: str = "train",
    kind: str = "sample",
    canary_share: float = SHARE,
    seed: int = 0,
    retry_failed: bool = False,
) -> list[Planned]:
    """What `label` would do with the same arguments, judge by judge; nothing is asked and nothing written."""
    wanted = _choices(panel, matchups)
    prompts, candidates = _candidates(store, {"run": run, "round": round, "split": split, "kind": kind})
    work = Work(
        store=store,
        run=run,
        round=round,
        seed=seed,
        canary_share=canary_share,
        retry_failed=retry_failed,
        prompts=prompts,
        candidates=candidates,
    )
    lead = _lead(panel)
    return [planned(work, member, choice, lead) for member, choice in zip(panel, wanted, strict=True)]


def _lead(panel: Sequence[PanelMember]) -> str | None:
    """The judge whose scores choose matchups: the first pointwise one."""
    return next((member.name for member in panel if member.judge.kind == "pointwise"), None)


def _side_by_side(work: Work, panel: Sequence[PanelMember], wanted: Sequence[choosing.Choice]) -> list[JudgeReport]:
    """Every member's report, in the panel's order."""
    lead = _lead(panel)
    scored = threading.Event()

    def one(member: PanelMember, choice: choosing.Choice) -> JudgeReport:
        if member.judge.kind == "pairwise" and choosing.needs_scores(choice):
            while not scored.wait(0.1):
                if work.ended:
                    return JudgeReport(member.name, member.judge.kind)
        try:
            return judge(work, member, choice, lead)
        finally:
            if member.name == lead:
                scored.set()

    tasks = [partial(one, member, choice) for member, choice in zip(panel, wanted, strict=True)]
    return side_by_side(tasks, len(tasks), work.claims.end)


class _InTurn:
    """A progress that several threads tell, one at a time."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._turn = threading.Lock()

    def advance(self, n: int = 1, *, failed: int = 0, reused: int = 0, tokens: int = 0) -> None:
        """See `Progress.advance`."""
        with self._turn:
            self._progress.advance(n, failed=failed, reused=reused, tokens=tokens)

    def expect(self, n: int) -> None:
        """See `console.expect`."""
        with self._turn:
            console.expect(self._progress, n)

    def pay(self, cost: float) -> None:
        """See `console.pay`."""
        with self._turn:
            console.pay(self._progress, cost)


def _choices(panel: Sequence[PanelMember], matchups: str) -> list[choosing.Choice]:
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
