"""Escalation: the pairs that are most worth a person's time. Pure but for the sheet that is written.

A pair's worth is the mean of three shares, each from 0 (leave it) to 1: the entropy of the panel's p_a, in bits; the
disagreement, twice the share of decided judges that the rest outvote; and the abstention, the share of judges without a
verdict, with a tie, or below the confidence from which they may be believed. Where gold is at hand a judge enters p_a
and the disagreement by the weight 2 accuracy - 1 (at least 0), so that one at chance stirs nothing up. The k-th pair of
a prompt counts 1 / k of its worth: people see many prompts.

Pairs chosen like this are no random draw: verdicts on them must not enter an estimate that takes gold as one
(prediction-powered means, thresholds, accuracies).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from factory.faults import IntegrityError
from factory.schema import Matchup, Prompt
from factory.trust.evidence import Evidence
from factory.verdicts import Pair, Verdict

if TYPE_CHECKING:
    from factory.store import Store


class Escalated(NamedTuple):
    """A pair for a person, and why: all shares from 0 to 1."""

    candidate_a: str
    candidate_b: str
    prompt_key: str
    worth: float
    entropy: float
    disagreement: float
    abstention: float
    p_a: float | None  # None: no judge has a verdict that counts

    def row(self) -> dict[str, Any]:
        """One line of a table."""
        return self._asdict()


def escalate(
    found: Evidence,
    *,
    most: int = 50,
    known: Iterable[Pair] = (),
    weights: Mapping[str, float] | None = None,
    thresholds: Mapping[str, float | None] | None = None,
    judges: Sequence[str] | None = None,
) -> list[Escalated]:
    """The pairs most worth a person's time, best first; those in `known` are judged already. `weights` of judges are 1
    unless given; `thresholds` are confidences below which a judge abstains (None: always). Two answers with the same
    text are no pair."""
    skip = set(known)
    named = [judge for judge in (judges or found.judges) if judge in found.said]
    open_pairs = [pair for pair in _candidates(found, named) if pair not in skip]
    scored = [_score(found, pair, named, weights or {}, thresholds or {}) for pair in open_pairs]
    scored.sort(key=lambda one: (-one.worth, one.candidate_a, one.candidate_b))
    seen: Counter[str] = Counter()
    turns: list[tuple[float, Escalated]] = []
    for one in scored:
        seen[one.prompt_key] += 1
        turns.append((one.worth / seen[one.prompt_key], one))
    turns.sort(key=lambda turn: (-turn[0], turn[1].candidate_a, turn[1].candidate_b))
    return [one for _, one in turns[:most]]


def _candidates(found: Evidence, judges: Sequence[str]) -> list[Pair]:
    """Pairs that any of the judges was asked about, with or without an answer."""
    asked = {pair for judge in judges for pair in found.panel.pairs.get(judge, {})}
    asked |= {pair for judge in judges for pair in found.said[judge]}
    texts = {key: candidate.text.strip() for key, candidate in found.candidates.items() if candidate.failure is None}
    return sorted(pair for pair in asked if pair[0] in texts and texts[pair[0]] != texts.get(pair[1], texts[pair[0]]))


def _score(
    found: Evidence,
    pair: Pair,
    judges: Sequence[str],
    weights: Mapping[str, float],
    thresholds: Mapping[str, float | None],
) -> Escalated:
    votes = {judge: verdict for judge in judges if (verdict := found.said[judge].get(pair)) is not None}
    asked = [j for j in judges if j in votes or pair in found.panel.pairs.get(j, {}) or j in found.panel.scores]
    weight = {judge: max(weights.get(judge, 1.0), 0.0) for judge in votes}
    total = math.fsum(weight.values())
    p_a = math.fsum(weight[j] * vote.p_a for j, vote in votes.items()) / total if total > 0 else None
    decided = {judge: vote.verdict == "a" for judge, vote in votes.items() if vote.verdict != "tie"}
    for_a, mass = (math.fsum(weight[j] for j in decided if decided[j] or not only_a) for only_a in (True, False))
    silent = sum(judge not in votes or _abstains(votes[judge], judge, thresholds) for judge in asked)
    entropy = 1.0 if p_a is None else _bits(p_a)
    disagreement = 2 * min(for_a, mass - for_a) / mass if mass > 0 else 0.0
    abstention = silent / len(asked) if asked else 1.0
    worth = (entropy + disagreement + abstention) / 3
    return Escalated(*pair, found.prompt(pair), worth, entropy, disagreement, abstention, p_a)


def _abstains(verdict: Verdict, judge: str, thresholds: Mapping[str, float | None]) -> bool:
    if verdict.verdict == "tie":
        return True
    if judge not in thresholds:
        return False
    threshold = thresholds[judge]
    return threshold is None or max(verdict.p_a, 1 - verdict.p_a) < threshold


def _bits(p: float) -> float:
    return -math.fsum(q * math.log2(q) for q in (p, 1 - p) if q > 0)


def write(store: Store, found: Evidence, chosen: Sequence[Escalated], path: Path, *, seed: int = 0) -> int:
    """Write the pairs as a sheet for people to fill in (CSV or JSONL), in an order drawn by `seed`, and give their
    number. FactoryError when the file is there already."""
    from factory.judges.human import sheet

    prompts = {row.key: row for row in store.rows(Prompt, {"key": sorted({one.prompt_key for one in chosen})})}
    lost = sorted({one.prompt_key for one in chosen} - prompts.keys())
    if lost:
        raise IntegrityError(
            f"{len(lost)} prompts of judged answers are not in the store, such as {lost[0]}",
            where=str(store.folder),
            todo="add the prompts again with factory prompts add; factory doctor checks the store",
        )
    matchups = [
        Matchup(prompts[one.prompt_key], found.candidates[one.candidate_a], found.candidates[one.candidate_b])
        for one in chosen
    ]
    return sheet(matchups, path, seed=seed)
