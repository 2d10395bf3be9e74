"""Judgments as something to be judged: kept calls of a judge become candidates, and by them preferences to train it.

Meta-Rewarding Language Models (Wu et al. 2024, arXiv 2407.19594, section 2.2): several judgments of one answer are
compared in pairs by a meta-judge, and the best and the worst make a preference whose prompt is what the judge was
asked. So `collect` writes each such question as a prompt (split `judging`, which no stage draws from) and each text
that the judge wrote as a candidate (kind `judgment`); then labelling and pairing do the rest, as for any answers:

    collect(store, run=run, round=1, judge="self_reward")
    label(store, [PanelMember.of("meta_judge", engine=engine)], run=run, round=1, split=SPLIT, kind=KIND)
    pair(store, run=run, round=1, split=SPLIT, kind=KIND, lead="meta_judge")

Deviations: a judgment's standing is its mean probability of being the better one, in both orders of showing, where the
paper fits Elo scores to a battle matrix weighted by position; and judgments that are too long are left out before they
are compared, where the paper drops the pairs that such a one wins.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from factory.faults import FactoryError
from factory.schema import Call, Candidate, Judgment, Prompt, digest, now
from factory.verdicts import latest

if TYPE_CHECKING:
    from factory.store import Store

SPLIT, KIND = "judging", "judgment"
READER = "1"


@dataclass
class CollectReport:
    """What was collected."""

    judge: str
    calls: int = 0
    """Kept calls that the judge's judgments were read from, canaries left out."""
    unread: int = 0
    """Of them without a judgment: there is nothing to learn from those."""
    too_long: int = 0
    """Of them longer than allowed."""
    questions: int = 0
    """Questions with two different judgments or more."""
    judgments: int = 0
    """Judgments of those questions."""
    written: int = 0
    """Of them new in the store."""


def collect(
    store: Store, *, run: str, round: int, judge: str, longest: int | None = None, questions: int | None = None
) -> CollectReport:
    """Write the judgments of a judge, each with what it was asked, as candidates of the same run and round.

    Questions with fewer than two different judgments are left out: there is nothing to compare. `longest`: in tokens of
    a judgment (length control). `questions`: at most so many, those whose judgments differ most in their score first,
    as the paper does. FactoryError: the judge has no judgments there that were read from calls.
    """
    where = {"run": run, "round": round, "judge": judge, "canary": False}
    rows = [row for row in latest(store.rows(Judgment, where)) if row.call_key is not None]
    if not rows:
        raise FactoryError(
            f"judge {judge!r} has no judgments by a model in run {run!r}, round {round}",
            where=str(store.folder),
            todo="let it judge first (factory label); self_reward with reasoning: written and samples above 1",
        )
    calls = store.latest_calls({row.call_key for row in rows if row.call_key})
    report = CollectReport(judge, calls=len(calls))
    groups = _grouped(calls, rows, longest, report)
    chosen = sorted(groups, key=lambda group: (-_spread(group), group[0][0].key))[:questions]
    prompts = [_prompt(group[0][0], judge) for group in chosen]
    found = [
        _candidate(call, prompt, run, round) for prompt, group in zip(prompts, chosen, strict=True) for call, _ in group
    ]
    store.append(Prompt.TABLE, prompts)
    report.questions, report.judgments = len(prompts), len(found)
    report.written = store.append(Candidate.TABLE, found)
    return report


Read = tuple[Call, float]  # a call and the score that was read from it


def _grouped(
    calls: Mapping[str, Call], rows: Iterable[Judgment], longest: int | None, report: CollectReport
) -> list[list[Read]]:
    """Calls with different texts by what was asked, those that cannot be used left out."""
    scores: defaultdict[str, list[float]] = defaultdict(list)
    failed = set()
    for row in rows:
        value = row.score if row.score is not None else row.p_a
        if row.call_key and value is not None:
            scores[row.call_key].append(value)
        elif row.call_key:
            failed.add(row.call_key)
    report.unread = sum(key in failed or key not in scores for key in calls)
    groups: defaultdict[str, dict[str, Read]] = defaultdict(dict)
    for key, call in sorted(calls.items()):
        if key in failed or key not in scores or not call.text.strip():
            continue
        if longest is not None and call.completion_tokens > longest:
            report.too_long += 1
            continue
        mean = sum(scores[key]) / len(scores[key])
        groups[_question(call)].setdefault(call.text.strip(), (call, mean))
    return [list(group.values()) for group in groups.values() if len(group) > 1]


def _question(call: Call) -> str:
    return digest(call.model_hash, call.messages)


def _spread(group: list[Read]) -> float:
    """Variance of the scores: where it is large, the judge is least sure (section 2.2, "response selection")."""
    values = [score for _, score in group]
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values) / len(values)


def _prompt(call: Call, judge: str) -> Prompt:
    return Prompt(
        key=digest(call.messages),
        messages=call.messages,
        split=SPLIT,
        group=f"{SPLIT}={call.tag}",
        source=f"judge {judge}",
        at=now(),
    )


def _candidate(call: Call, prompt: Prompt, run: str, round: int) -> Candidate:
    values: dict[str, Any] = {name: getattr(call, name) for name in ("model", "model_hash", "sample", "logprob")}
    return Candidate(
        key=digest(run, round, call.key, KIND, READER),
        run=run,
        round=round,
        prompt_key=prompt.key,
        split=SPLIT,
        kind=KIND,
        call_key=call.key,
        text=call.text,
        finish_reason=call.finish_reason,
        tokens=call.completion_tokens,
        reader=READER,
        at=now(),
        **values,
    )
