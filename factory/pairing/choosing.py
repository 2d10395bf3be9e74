"""Pairing strategies: which of the pairs that the panel decides are trained on. One function and one registration each.

All choose among decided pairs only: a strategy cannot make a preference out of a tie. What a tie does say, that two
answers are as good as each other, `tie_aware` puts to use; tied pairs as training data of their own (2409.17431) need a
loss that models ties, and are found in the judgments. Every choice is the same whatever the order of rows; what is left
to chance is drawn by the seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from factory.registry import Registry
from factory.schema import Candidate, digest
from factory.verdicts import SAME, Pair

MODERATE = (0.1, 0.5)
"""The margins that `moderate_margin` takes, as shares of the whole scale: our own choice, inclusive."""


OWN_KEY = 32
"""Digits of the key that a candidate had in the run that made it; a run that shares it adds digits of its own."""


class Choice(NamedTuple):
    """A preference between two answers. `margin` 0 to 1; `agreement`: share of the `judges` with a verdict that side
    with it; `probability` that chosen is the better and `entropy` (nats) of the panel's verdict, None when there is
    none."""

    chosen: Candidate
    rejected: Candidate
    margin: float
    agreement: float | None
    judges: int
    probability: float | None = None
    entropy: float | None = None


class Group(NamedTuple):
    """One prompt's answers: `decided` are the pairs with a winner that passed the filters, `standing` each answer's
    mean probability of being the better one over all pairs with a verdict, ties included, `scores` the panel's score of
    each answer (0 to 1; its standing where all judges are pairwise), `rewards` the same on the judge's own scale where
    there is one, `tied` the pairs that the panel ties."""

    decided: Sequence[Choice]
    standing: Mapping[str, float]
    scores: Mapping[str, float]
    rewards: Mapping[str, float]
    tied: Sequence[Pair] = ()


Strategy = Callable[[Group, int], list[Choice]]
strategies: Registry[Strategy] = Registry("pairing strategy")
"""Fact `lineage`: it pairs drafts with their revisions instead of the answers to a prompt with each other."""


def drawn(choice: Choice, seed: int) -> str:
    """A choice's place in an order drawn by seed: the same in every run that shares the answers."""
    return digest(seed, "pair", choice.chosen.key[:OWN_KEY], choice.rejected.key[:OWN_KEY])


def is_flipped(share: float, seed: int, *answers: Candidate) -> bool:
    """Is what is said of these answers to one prompt turned about on purpose, when this share of all is?

    The draw depends on the seed, the prompt and the texts alone, in whatever order: every run with these answers flips
    the same, answers with the same text are flipped alike, and a larger share flips all that a smaller one does.
    """
    texts = sorted(answer.text.strip() for answer in answers)
    return int(digest(seed, "flip", answers[0].prompt_key, *texts), 16) < share * 16**32


def turned(choice: Choice) -> Choice:
    """The opposite preference; margin, agreement, probability and entropy stay those of what the panel said."""
    return choice._replace(chosen=choice.rejected, rejected=choice.chosen)


@strategies.register("all", lineage=False)
def every(group: Group, seed: int) -> list[Choice]:
    """Every decided pair, by key (2203.02155 trains its reward model on all pairs of a prompt)."""
    return sorted(group.decided, key=lambda c: (c.chosen.key, c.rejected.key))


@strategies.register("random", lineage=False)
def draw(group: Group, seed: int) -> list[Choice]:
    """One decided pair, drawn by seed: what the others are to be measured against."""
    return sorted(group.decided, key=lambda c: drawn(c, seed))[:1]


@strategies.register("max_margin", lineage=False)
def max_margin(group: Group, seed: int) -> list[Choice]:
    """The pair with the largest margin, as 2502.14560 selects data; of equals one that most judges saw, drawn by
    seed."""
    return sorted(group.decided, key=lambda c: (-round(c.margin, 9), -c.judges, drawn(c, seed)))[:1]


@strategies.register("best_worst", lineage=False)
def best_worst(group: Group, seed: int) -> list[Choice]:
    """The best answer over the worst by standing (so pair 2401.10020 and 2405.07863). Where these two were
    not judged against each other, the decided pair whose standings lie farthest apart; of equals one that most judges
    saw, drawn by seed."""
    ahead = _ahead(group, group.standing)
    return sorted(ahead, key=lambda c: (-_apart(c, group.standing), -round(c.margin, 9), -c.judges, drawn(c, seed)))[:1]


@strategies.register("best_random", lineage=False)
def best_random(group: Group, seed: int) -> list[Choice]:
    """The best answer by score over another, drawn by seed among those that it beats: so pairs 2310.16944, to vary what
    is rejected and to make it harder to tell than the worst."""
    ahead = _of_best(_ahead(group, group.scores), group.scores)
    return sorted(ahead, key=lambda c: drawn(c, seed))[:1]


@strategies.register("mu_2sigma", lineage=False)
def mu_2sigma(group: Group, seed: int) -> list[Choice]:
    """The best answer by reward over the one nearest to mean - 2 standard deviations of all the prompt's rewards
    (2502.16825): with many samples the very worst is an outlier that teaches little. With few it is the worst."""
    if not group.rewards:
        return []
    values = sorted(group.rewards.values())
    mean = math.fsum(values) / len(values)
    sigma = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
    ahead = _of_best(_ahead(group, group.rewards), group.rewards)

    def off(choice: Choice) -> float:
        return round(abs(group.rewards[choice.rejected.key] - (mean - 2 * sigma)), 9)

    return sorted(ahead, key=lambda c: (off(c), -round(c.margin, 9), -c.judges, drawn(c, seed)))[:1]


@strategies.register("moderate_margin", lineage=False)
def moderate_margin(group: Group, seed: int) -> list[Choice]:
    """Of the pairs with a margin within `MODERATE`, the one whose two answers score highest together: 2504.03612 finds
    moderate margins with high absolute scores best. The bounds are our own; of equals one that most judges saw, drawn
    by seed."""
    low, high = MODERATE
    moderate = [c for c in _ahead(group, group.scores) if low - SAME <= c.margin <= high + SAME]

    def together(choice: Choice) -> float:
        return round(group.scores[choice.chosen.key] + group.scores[choice.rejected.key], 9)

    return sorted(moderate, key=lambda c: (-together(c), -c.judges, drawn(c, seed)))[:1]


@strategies.register("tie_aware", lineage=False)
def tie_aware(group: Group, seed: int) -> list[Choice]:
    """The top tier over the bottom tier, by key: answers that stand highest or that the panel ties with one of these,
    over answers that stand lowest or tie with one of those. An answer of both tiers is in neither, and no pair within
    a tier is taken. Our own: a tie says that either answer will do."""
    if not group.standing:
        return []
    ends = max(group.standing.values()), min(group.standing.values())
    top, bottom = (_tier(group, end) for end in ends)
    picked = [c for c in group.decided if c.chosen.key in top - bottom and c.rejected.key in bottom - top]
    return sorted(picked, key=lambda c: (c.chosen.key, c.rejected.key))


@strategies.register("draft_revision", lineage=True)
def draft_revision(group: Group, seed: int) -> list[Choice]:
    """Every revision over the draft that it came from, by key: section 3 of 2212.08073 trains on its revisions; here
    the draft is kept beside it, as what is rejected. See `sifting.lineages`."""
    return every(group, seed)


def _tier(group: Group, standing: float) -> set[str]:
    """The answers of that standing, and those tied with one of them."""
    level = {key for key, value in group.standing.items() if abs(value - standing) < SAME}
    return level | {key for pair in group.tied if level & set(pair) for key in pair}


def _apart(choice: Choice, by: Mapping[str, float]) -> float:
    return round(by[choice.chosen.key] - by[choice.rejected.key], 9)


def _ahead(group: Group, by: Mapping[str, float]) -> list[Choice]:
    """The decided pairs whose chosen is also ahead by that measure, which both must have."""
    known = (c for c in group.decided if c.chosen.key in by and c.rejected.key in by)
    return [choice for choice in known if _apart(choice, by) > 0]


def _of_best(choices: Sequence[Choice], by: Mapping[str, float]) -> list[Choice]:
    """Those whose chosen is the highest of all that are chosen."""
    best = max((round(by[c.chosen.key], 9) for c in choices), default=0.0)
    return [choice for choice in choices if round(by[choice.chosen.key], 9) == best]
