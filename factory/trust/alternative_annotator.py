"""The alternative annotator test: may a judge take a person's place? Pure.

Calderon, Reichart and Dror, arXiv 2501.10970. Each person j in turn is left out, and on every item that j judged both j
and the judge are held against the people who remain: S is the share of them that say the same. With W_f = 1 where
S(judge) >= S(j) and W_h = 1 where S(j) >= S(judge), the advantage probabilities are rho_f = mean W_f and rho_h = mean
W_h. Tested for every person: H0 rho_f <= rho_h - epsilon, by a one-sided paired t-test of W_h - W_f against epsilon;
false discoveries among the people are held to q by Benjamini and Yekutieli's procedure (2001, Ann. Stat. 29:1165).
omega is the share of people against whom H0 is rejected: from 1/2 on the judge may take their place. epsilon is what a
person costs more than the judge, in advantage: 0.2 for experts, 0.1 for hired hands.

Two things are ours: the t-test sums items within prompts, and where no item differs from another (the t-test then has
no scale), p is the probability (1 - epsilon)^prompts of seeing none.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from factory.schema import Estimate
from factory.stats import clusters, quantiles

Word = str
PEOPLE = 3
"""Fewest people."""
ITEMS = 30
"""Fewest items of a person for the t-test."""


class Person(NamedTuple):
    """The judge against one person: items, both advantage probabilities, p of H0, and whether H0 is rejected."""

    person: str
    items: int
    advantage: float
    other: float
    p: float
    rejected: bool


@dataclass(frozen=True)
class Alternative:
    """The test of one judge. `advantage` is rho: the mean of the people's rho_f. `passes`: omega >= 1/2; None, with the
    reason in `note`, where people or items are too few."""

    judge: str
    epsilon: float
    q: float
    people: list[Person]
    omega: float | None
    advantage: float | None
    passes: bool | None
    note: str = ""


def alternative(
    judge: str,
    said: Mapping[Hashable, Word],
    people: Mapping[str, Mapping[Hashable, Word]],
    prompts: Mapping[Hashable, Hashable],
    *,
    epsilon: float = 0.2,
    q: float = 0.05,
) -> Alternative:
    """Test a judge's verdicts by item against those of people. `prompts` gives the prompt of every item."""
    tested = {person: found for person in sorted(people) if len(found := _compare(person, said, people)) >= ITEMS}
    if len(people) < PEOPLE or len(tested) < PEOPLE:
        note = f"needs {PEOPLE} people with {ITEMS} shared items each; {len(tested)} of {len(people)} have them"
        return Alternative(judge, epsilon, q, [], None, None, None, note)
    results = [_against(person, found, prompts, epsilon) for person, found in tested.items()]
    rejected = benjamini_yekutieli([result.p for result in results], q)
    results = [result._replace(rejected=flag) for result, flag in zip(results, rejected, strict=True)]
    omega = sum(rejected) / len(rejected)
    advantage = sum(result.advantage for result in results) / len(results)
    return Alternative(judge, epsilon, q, results, omega, advantage, omega >= 0.5)


Compared = dict[Hashable, tuple[bool, bool]]  # by item: W_f and W_h


def _compare(person: str, said: Mapping[Hashable, Word], people: Mapping[str, Mapping[Hashable, Word]]) -> Compared:
    """The items that the person, the judge and somebody else judged."""
    found: Compared = {}
    for item, own in people[person].items():
        others = [words[item] for other, words in people.items() if other != person and item in words]
        if others and item in said:
            judge, human = (sum(word == other for other in others) for word in (said[item], own))
            found[item] = judge >= human, human >= judge
    return found


def _against(person: str, found: Compared, prompts: Mapping[Hashable, Hashable], epsilon: float) -> Person:
    differences = [float(human) - float(judge) for judge, human in found.values()]
    n = len(found)
    return Person(
        person,
        n,
        sum(judge for judge, _ in found.values()) / n,
        sum(human for _, human in found.values()) / n,
        _p_below(differences, [prompts[item] for item in found], epsilon),
        False,
    )


def _p_below(differences: Sequence[float], prompts: Sequence[Hashable], epsilon: float) -> float:
    """p of H0: the mean difference is epsilon or more."""
    found: Estimate = clusters.mean(differences, prompts, level=0.95)
    groups = len(set(prompts))
    if groups < 2:
        return 1.0
    error = (found.high - found.value) / quantiles.t_of(0.95, groups - 1)
    if error <= 1e-12:
        return float((1 - epsilon) ** groups) if found.value < epsilon else 1.0
    return quantiles.t_below((found.value - epsilon) / error, groups - 1)


def benjamini_yekutieli(p: Sequence[float], q: float) -> list[bool]:
    """Which hypotheses are rejected: the smallest p up to the last k with p_(k) <= k q / (m (1 + 1/2 + ... + 1/m))."""
    m = len(p)
    harmonic = math.fsum(1 / k for k in range(1, m + 1))
    order = sorted(range(m), key=lambda i: p[i])
    last = max((k for k, i in enumerate(order, 1) if p[i] <= k * q / (m * harmonic)), default=0)
    kept = set(order[:last])
    return [i in kept for i in range(m)]
