"""A policy's answers to the prompts that measure: asked for, found again in the store, and graded by the verifier."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from factory import crash
from factory.evaluation.measures import Graded
from factory.faults import FactoryError
from factory.judges import judges as known_judges
from factory.schema import Candidate, Judgment, Matchup, Prompt, Request, Sampling, call_key

if TYPE_CHECKING:
    from factory.budget import Budget
    from factory.console import Progress
    from factory.engines import Engine
    from factory.store import Store

VERIFIER = "verifier"


class Slot(NamedTuple):
    """A place for an answer: the sample-th answer to a prompt; None: nothing came back."""

    prompt: Prompt
    sample: int
    answer: Candidate | None


@dataclass(frozen=True, slots=True)
class Asking:
    """Where answers come from and belong."""

    store: Store
    engine: Engine
    run: str
    round: int
    split: str
    seed: int
    budget: Budget | None
    progress: Progress | None

    def answers(self, prompts: Sequence[Prompt], n: int, sampling: Sampling, *, kind: str = "sample") -> list[Slot]:
        """`n` answers to each prompt; what is held is not asked for again."""
        from factory.generation import generate

        generate(
            self.store,
            self.engine,
            run=self.run,
            round=self.round,
            keys=[prompt.key for prompt in prompts],
            n=n,
            sampling=sampling,
            seed=self.seed,
            purpose="evaluate",
            kind=kind,
            budget=self.budget,
            progress=self.progress,
        )
        crash.point("evaluate.after_answers")
        places = places_of(self.engine, prompts, n, sampling, self.seed)
        return answers_of(
            self.store, run=self.run, round=self.round, split=self.split, prompts=prompts, places=places, kind=kind
        )


def answers_of(
    store: Store,
    *,
    run: str,
    round: int,
    split: str,
    prompts: Sequence[Prompt],
    places: Mapping[tuple[str, int], str] | None = None,
    kind: str = "sample",
) -> list[Slot]:
    """The answers of an evaluated round, prompt by prompt and sample by sample; of several, the newest.

    `places`: the call key that each (prompt key, sample) must have; all of them are in the result, filled or not.
    Without it whatever the round holds for the prompts counts, and every prompt has as many places as any of them.
    """
    where = {"run": run, "round": round, "split": split, "kind": kind}
    found: dict[tuple[str, int], Candidate] = {}
    for answer in sorted(store.rows(Candidate, where), key=lambda c: (c.at, c.key)):
        place = answer.prompt_key, answer.sample
        if places is None or places.get(place) == answer.call_key:
            found[place] = answer
    wanted = {prompt.key for prompt in prompts}
    most = 1 + max((sample for key, sample in places or found if key in wanted), default=-1)
    return [Slot(prompt, i, found.get((prompt.key, i))) for prompt in prompts for i in range(most)]


def places_of(
    engine: Engine, prompts: Sequence[Prompt], n: int, sampling: Sampling, seed: int
) -> dict[tuple[str, int], str]:
    """The call keys of answers asked of an engine, by (prompt key, sample): those that another model gave, or that were
    asked with another seed or sampling, are not mixed in."""
    return dict(place for prompt in prompts for place in _call_keys(engine, prompt, n, sampling, seed))


def _call_keys(
    engine: Engine, prompt: Prompt, n: int, sampling: Sampling, seed: int
) -> Iterator[tuple[tuple[str, int], str]]:
    request = Request(prompt.messages, sampling, n=n, seed=seed, tools=tuple(prompt.tools or ()))
    rendered = engine.render(request)
    for sample in range(n):
        yield (prompt.key, sample), call_key(engine.identity, rendered, request, sample)


def grade(store: Store, slots: Sequence[Slot], options: Mapping[str, Any] | None = None) -> list[Graded]:
    """What the verifier says of each answer; its judgments are stored. A missing answer is graded as a failed one."""
    verifier: Any = known_judges.get(VERIFIER)(**(options or {}))
    shown = [Matchup(slot.prompt, slot.answer) for slot in slots if slot.answer is not None]
    with closing(verifier):
        verdicts = list(verifier.vote(shown))
    store.append("judgments", verdicts)
    by_answer = {verdict.candidate_a: verdict for verdict in verdicts}
    return [_graded(slot, by_answer.get(slot.answer.key) if slot.answer else None) for slot in slots]


def _graded(slot: Slot, verdict: Judgment | None) -> Graded:
    prompt, sample, answer = slot
    if answer is None or answer.failure:
        failure = answer.failure if answer else "missing"
        if not prompt.constraints:
            return Graded(prompt.key, sample, failure=failure)
        kinds = {str(constraint["kind"]): 0.0 for constraint in prompt.constraints}
        return Graded(prompt.key, sample, failure=failure, score=0.0, passed=False, kinds=kinds)
    if verdict is None or verdict.score is None:
        return Graded(prompt.key, sample, answer.text, answer.tokens)
    detail = verdict.detail or {}
    passed = bool(detail.get("all_met")) and bool(detail.get("substance", True))
    return Graded(
        prompt.key, sample, answer.text, answer.tokens, None, verdict.score, passed, dict(detail.get("by_kind") or {})
    )


class Baseline(NamedTuple):
    """The answers to beat, what they are worth, and the name of the policy that gave them."""

    policy: str
    graded: list[Graded]
    slots: list[Slot]


def baseline_of(
    store: Store,
    run: str,
    round: int,
    split: str,
    prompts: Sequence[Prompt],
    verifier: Mapping[str, Any] | None,
    places: Mapping[tuple[str, int], str] | None = None,
) -> Baseline:
    """What an evaluated round answered to the prompts, graded; `places`: as in `answers_of`. FactoryError: it has no
    answers to them."""
    slots = answers_of(store, run=run, round=round, split=split, prompts=prompts, places=places)
    names = {slot.answer.model for slot in slots if slot.answer}
    if not names:
        raise FactoryError(
            f"round {round} of run {run!r} has no answers to the {split} prompts to compare with",
            where=str(store.folder),
            todo=f"evaluate round {round} on {split} first",
        )
    return Baseline(policy_name(store, sorted(names)[-1]), grade(store, slots, verifier), slots)


def are_the_same(ours: Sequence[Slot], theirs: Sequence[Slot]) -> bool:
    """Were the same questions put to the same policy, answer by answer? A round that trained nothing has the answers
    of the round before."""
    calls, others = (
        {(s.prompt.key, s.sample): s.answer and s.answer.call_key for s in slots} for slots in (ours, theirs)
    )
    return bool(calls) and calls == others and None not in calls.values()


def policy_name(store: Store, policy: str) -> str:
    """A policy's name as it is kept: from the store's folder when it lies there, so that a store can be moved."""
    home, path = store.folder.resolve(), Path(policy)
    inside = path.exists() and path.resolve().is_relative_to(home)
    return str(path.resolve().relative_to(home)) if inside else policy
