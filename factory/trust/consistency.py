"""Do two judges rank the same answers alike? CREAM's consistency rate, and what follows for training.

CREAM (Wang et al. 2024, arXiv 2410.12735): a self-rewarding policy judges with its own errors, which the next round
makes its own. Where this round's policy and the one before it rank the answers to a prompt differently, the preference
is doubtful. For prompt j, with the ranks J and K of its N answers under the two judges, Kendall's rank correlation is

    tau_j = 2 / (N (N - 1)) * sum over i < k of sign((J_i - J_k) (K_i - K_k)),    C_j = (tau_j + 1) / 2,

and C is the mean of C_j over the prompts. The loss is C * L(chosen, rejected) + (1 - C) * L(rejected, chosen): DPO with
the label smoothing 1 - C (`Consistency.label_smoothing`, for `cdpo`). C_j itself is a weight for the preferences of its
prompt (`weights`). Deviations: answers that a judge scores the same count for neither side, where the authors' code
breaks ties by their place in the list; and smoothing stops at 1/2, since beyond that it would teach the opposite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

from factory.faults import FactoryError
from factory.registry import Registry
from factory.schema import Candidate, Judgment
from factory.verdicts import SAME, Panel, read

if TYPE_CHECKING:
    from factory.store import Store

Ranking = Mapping[str, float]
"""How one judge places the answers to a prompt: candidate key to a number, higher is better."""

methods: Registry[Callable[[Sequence[float], Sequence[float]], float]] = Registry("rank correlation")
"""Name to a rate in [0, 1] of two lists of scores of the same answers, at least two: 1 the same ranking, 1/2 none in
common, 0 the reverse."""


def _sign(difference: float) -> int:
    return 0 if abs(difference) < SAME else 1 if difference > 0 else -1


@methods.register("kendall")
def kendall(first: Sequence[float], second: Sequence[float]) -> float:
    """(tau + 1) / 2, with tau as above: pairs that either judge ties count 0."""
    pairs = list(combinations(range(len(first)), 2))
    agreed = sum(_sign(first[i] - first[k]) * _sign(second[i] - second[k]) for i, k in pairs)
    return (agreed / len(pairs) + 1) / 2


@methods.register("spearman")
def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """(rho + 1) / 2, with rho Pearson's correlation of the mid-ranks; 1/2 where a judge scores all the same."""
    j, k = _midranks(first), _midranks(second)
    mean = (len(j) - 1) / 2
    covariance = math.fsum((a - mean) * (b - mean) for a, b in zip(j, k, strict=True))
    spread = math.sqrt(math.fsum((a - mean) ** 2 for a in j) * math.fsum((b - mean) ** 2 for b in k))
    rho = covariance / spread if spread > 0 else 0.0
    return (min(max(rho, -1.0), 1.0) + 1) / 2


@methods.register("top_order")
def top_order(first: Sequence[float], second: Sequence[float]) -> float:
    """1 where the judges name the same best and the same worst answer, else 0; a tie names none."""
    ends = [(_only_end(scores, 1), _only_end(scores, -1)) for scores in (first, second)]
    return float(ends[0] == ends[1] and None not in ends[0])


def _only_end(scores: Sequence[float], side: int) -> int | None:
    """The place of the best (side 1) or worst (side -1) score, if there is one alone."""
    at = max(range(len(scores)), key=lambda i: side * scores[i])
    return at if sum(_sign(score - scores[at]) == 0 for score in scores) == 1 else None


def _midranks(scores: Sequence[float]) -> list[float]:
    """Ranks from 0; equal scores share the mean of their ranks."""
    return [
        sum(_sign(score - other) > 0 for other in scores) + (sum(_sign(score - o) == 0 for o in scores) - 1) / 2
        for score in scores
    ]


# ------------------------------------------------------------------------------------------------------ many prompts


@dataclass(frozen=True)
class Consistency:
    """How alike two judges rank, by prompt. `rates`: prompt key to C_j; `left_out`: prompts with fewer than two answers
    that both judges placed."""

    method: str
    rates: Mapping[str, float]
    left_out: int = 0

    @property
    def mean(self) -> float | None:
        """C; None without any prompt."""
        return math.fsum(self.rates.values()) / len(self.rates) if self.rates else None

    @property
    def label_smoothing(self) -> float | None:
        """1 - C, at most 1/2: the smoothing with which `cdpo` is the paper's loss."""
        return None if self.mean is None else min(1 - self.mean, 0.5)

    def weights(self, floor: float = 0.0) -> dict[str, float]:
        """C_j by prompt, at least `floor`: how much a preference of that prompt counts in training. Prompts that were
        left out are not in it."""
        return {key: max(rate, floor) for key, rate in self.rates.items()}


def between(prompts: Mapping[str, tuple[Ranking, Ranking]], method: str = "kendall") -> Consistency:
    """The consistency of two judges over prompts, by the answers that both placed. FactoryError: an unknown method."""
    rate = methods.get(method)
    rates: dict[str, float] = {}
    for key, (first, second) in prompts.items():
        shared = sorted(set(first) & set(second))
        if len(shared) > 1:
            rates[key] = rate([first[c] for c in shared], [second[c] for c in shared])
    return Consistency(method, rates, len(prompts) - len(rates))


def ranking(panel: Panel, judge: str, candidates: Iterable[str]) -> Ranking:
    """How a judge places these answers: by its scores, or, for a pairwise judge, by the mean probability of being the
    better one. An answer without a usable score, or with a pair that has none, is not placed."""
    keys = sorted(candidates)
    if judge in panel.scores:
        scores = {key: panel.scores[judge].get(key) for key in keys}
        return {key: s.value if s.log_odds else s.share for key, s in scores.items() if s is not None}
    chances = {key: [_chance(panel, judge, key, other) for other in keys if other != key] for key in keys}
    known = {key: [chance for chance in found if chance is not None] for key, found in chances.items()}
    return {key: sum(found) / len(found) for key, found in known.items() if found and len(found) == len(chances[key])}


def _chance(panel: Panel, judge: str, key: str, other: str) -> float | None:
    """Probability that `key` is better than `other`."""
    low, high = sorted((key, other))
    verdict = panel.verdict(judge, (low, high))
    if verdict is None:
        return None
    return verdict.p_a if key == low else 1 - verdict.p_a


def measure(
    store: Store,
    *,
    run: str,
    round: int,
    judge: str,
    previous: str,
    split: str = "train",
    kind: str = "sample",
    method: str = "kendall",
) -> Consistency:
    """The consistency of two judges of a panel (this round's policy and the one before it) over a run's round.

    FactoryError: an unknown method, or a judge without judgments there.
    """
    methods.get(method)
    rows = store.rows(Judgment, {"run": run, "round": round, "judge": [judge, previous]})
    missing = sorted({judge, previous} - {row.judge for row in rows})
    if missing or judge == previous:
        raise FactoryError(
            f"no judgments by {', '.join(missing)} in run {run!r}, round {round}" if missing else
            f"{judge!r} agrees with itself: name two judges",
            where=str(store.folder), todo="let both judges judge the same candidates (factory label) first",
        )  # fmt: skip
    panel = read(rows)
    groups: dict[str, list[str]] = {}
    for candidate in store.rows(Candidate, {"run": run, "round": round, "split": split, "kind": kind}):
        if candidate.failure is None:
            groups.setdefault(candidate.prompt_key, []).append(candidate.key)
    both = {
        prompt: (ranking(panel, judge, keys), ranking(panel, previous, keys)) for prompt, keys in sorted(groups.items())
    }
    return between(both, method)
