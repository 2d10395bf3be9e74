"""What a judge says of a policy's answers against the baseline's to the same prompts; and whether it is independent.

A judge that also labelled what the policy was trained on can only say how well the policy has learnt to please it. So
an evaluation wants one that did not. A pairwise judge sees each of the policy's answers with the baseline's of the same
number, in both orders; a pointwise one scores both, and the higher score wins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from factory import verdicts
from factory.evaluation import length_control
from factory.evaluation.answers import VERIFIER
from factory.labelling import matchups
from factory.labelling.judging import judge
from factory.labelling.panel import PanelMember, Work, locks_of
from factory.schema import Candidate, Estimate, Judged, Judgment, Prompt
from factory.stats import intervals

if TYPE_CHECKING:
    from factory.budget import Budget
    from factory.console import Progress
    from factory.store import Store

CANARIES = 0.02  # share of a model's matchups that are canaries, as in labelling
Labellers = Mapping[str, str]
"""Who labelled: the name of each judge (and its kind, where another name hides it) -> the model behind it, "" for
none."""


class Versus(NamedTuple):
    """The policy's answer and the baseline's to one prompt. None: there is none; the other then wins, two are a tie."""

    prompt: Prompt
    ours: Candidate | None
    theirs: Candidate | None


def is_independent(name: str, kind: str, model: str, labelled_by: Labellers | None) -> bool | None:
    """Did neither this judge nor the model behind it label? None: nobody knows who did."""
    if labelled_by is None:
        return None
    models = {known for known in labelled_by.values() if known}
    return name not in labelled_by and kind not in labelled_by and model not in models


def labellers_of(store: Store, policy: str) -> Labellers | None:
    """Who labelled what a policy of this store was trained on: the judges of its run's judgments on prompts of the
    train split, the verifier by its kind too, as it is what grades here. None where the policy is from elsewhere, or
    its run has no judgments."""
    home, path = store.folder.resolve() / "runs", Path(policy).resolve()
    if not path.is_relative_to(home) or path == home:
        return None
    run = path.relative_to(home).parts[0]
    trained = {row["key"] for row in store.read("prompts", columns=["key"], where={"split": "train"})}
    columns = ["judge", "judge_model", "prompt_key", "detail"]
    rows = [row for row in store.read("judgments", columns=columns, where={"run": run}) if row["prompt_key"] in trained]
    verified = any("all_met" in (row["detail"] or {}) for row in rows)  # which no other judge tells
    return {row["judge"]: row["judge_model"] for row in rows} | ({VERIFIER: ""} if verified else {}) or None


def model_of(member: PanelMember) -> str:
    """The model behind a member of a panel; "" for programs and people."""
    if member.engine is not None:
        return member.engine.identity.model
    return str(getattr(member.judge, "model", "") or "")


def judged(
    store: Store,
    member: PanelMember,
    versus: Sequence[Versus],
    *,
    run: str,
    round: int,
    labelled_by: Labellers | None = None,
    seed: int = 0,
    budget: Budget | None = None,
    progress: Progress | None = None,
) -> Judged:
    """Put the pairs before the judge and count what it says; its judgments are stored under this run and round, and
    what is held already is not asked again. EndpointError and BudgetError end it, with all finished work kept."""
    whole = [v for v in versus if _usable(v.ours) and _usable(v.theirs)]
    for some in _one_a_prompt(whole):
        work = Work(
            store=store,
            run=run,
            round=round,
            seed=seed,
            canary_share=CANARIES,
            prompts={v.prompt.key: v.prompt for v in some},
            candidates={v.prompt.key: _canonical(v) for v in some},
            progress=progress,
            budget=budget,
            locks=locks_of([member]),
        )
        judge(work, member, matchups.parse("all"), None)
    panel = verdicts.read(store.rows(Judgment, {"run": run, "round": round, "judge": member.name}))
    name, model = member.name, model_of(member)
    alone = is_independent(name, member.registered or name, model, labelled_by)
    return _counted(panel, name, versus, alone, seed)


def _usable(answer: Candidate | None) -> bool:
    return answer is not None and answer.failure is None


def _one_a_prompt(versus: Sequence[Versus]) -> list[list[Versus]]:
    """The pairs in rounds with one of each prompt, so that answers of different numbers do not meet."""
    rounds: list[dict[str, Versus]] = []
    for each in versus:
        free = next((r for r in rounds if each.prompt.key not in r), None)
        if free is None:
            rounds.append(free := {})
        free[each.prompt.key] = each
    return [[r[key] for key in sorted(r)] for r in rounds]


def _canonical(versus: Versus) -> list[Candidate]:
    return sorted((c for c in (versus.ours, versus.theirs) if c is not None), key=lambda c: c.key)


class _Outcome(NamedTuple):
    """What the judge says of one pair. won: 1, 1/2 or 0; None: it gave no verdict."""

    won: float | None
    flipped: bool = False


def _counted(panel: verdicts.Panel, name: str, versus: Sequence[Versus], independent: bool | None, seed: int) -> Judged:
    outcomes = [(v, _outcome(panel, name, v)) for v in versus]
    decided = [(v, o.won) for v, o in outcomes if o.won is not None]
    by_prompt: dict[str, list[float]] = {}
    for v, won in decided:
        by_prompt.setdefault(v.prompt.key, []).append(won)
    means = [sum(values) / len(values) for values in by_prompt.values()]
    lengths = [length_control.Compared(won, _longer(v), 0.0, v.prompt.key) for v, won in decided]
    return Judged(
        judge=name,
        independent=independent,
        win_rate=intervals.win_rate(means, seed=seed) if means else None,
        length_controlled=length_control.win_rate(lengths, seed=seed),
        comparisons=len(decided),
        ties=sum(won == 0.5 for _, won in decided),
        flips=sum(o.flipped for _, o in outcomes),
        failures=len(outcomes) - len(decided),
        score=_score(panel, name, versus, seed),
    )


def _longer(versus: Versus) -> float | None:
    """By how many tokens ours is the longer; None where an answer failed."""
    ours, theirs = versus.ours, versus.theirs
    both = ours is not None and theirs is not None and not (ours.failure or theirs.failure)
    return float(ours.tokens - theirs.tokens) if both and ours and theirs else None


def _outcome(panel: verdicts.Panel, name: str, versus: Versus) -> _Outcome:
    ours, theirs = versus.ours, versus.theirs
    if not (_usable(ours) and _usable(theirs)) or ours is None or theirs is None:
        return _Outcome(0.5 + (_usable(ours) - _usable(theirs)) / 2)
    if ours.text == theirs.text or ours.key == theirs.key:
        return _Outcome(0.5)
    a, b = sorted((ours.key, theirs.key))
    said = panel.verdict(name, (a, b))
    if said is None:
        return _Outcome(None)
    if a != ours.key:
        said = said.turned()
    return _Outcome({"a": 1.0, "tie": 0.5, "b": 0.0}[said.verdict], bool(said.flipped))


def _score(panel: verdicts.Panel, name: str, versus: Sequence[Versus], seed: int) -> Estimate | None:
    """The mean score of the policy's answers by a pointwise judge."""
    scores = panel.scores.get(name, {})
    found = [(v.prompt.key, s) for v in versus if v.ours is not None and (s := scores.get(v.ours.key)) is not None]
    if not found:
        return None
    values = [score.value if score.log_odds else score.share for _, score in found]
    return intervals.mean(values, [key for key, _ in found], seed=seed)
