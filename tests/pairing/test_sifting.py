"""What may be chosen: filters, near-duplicates, lengths, and drafts with their revisions."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings, strategies as st
from judged import both, candidate_of, pointwise

from factory import verdicts
from factory.faults import ConfigError
from factory.pairing import Choice, Filters, Rule
from factory.pairing.sifting import (
    LENGTH_TOLERANCE,
    Sifted,
    balance,
    length_ratio,
    lineages,
    matched,
    most,
    near_duplicates,
    nearness,
    sift,
)
from factory.schema import Candidate, Judgment


def sifted(candidates: Sequence[Candidate], rows: Sequence[Judgment], filters: Filters, lead: str = "v") -> Sifted:
    panel = verdicts.read(rows)
    return sift(candidates, panel, panel.judges(), Rule("lead", lead), filters)


def names(choices: Sequence[Choice]) -> list[str]:
    return sorted(f"{c.chosen.key}>{c.rejected.key}" for c in choices)


ABC = [candidate_of("a", "one two"), candidate_of("b", "one two three"), candidate_of("c", "one two three four five")]
SCORES = [pointwise("v", "a", 0.2), pointwise("v", "b", 0.5), pointwise("v", "c", 1.0)]
SECOND = [row for pair, p in (("ab", 0.9), ("ac", 0.1), ("bc", 0.5)) for row in both("x", pair[0], pair[1], p, p)]


@pytest.mark.parametrize(
    ("filters", "kept", "dropped"),
    [
        (Filters(), ["b>a", "c>a", "c>b"], {}),
        (Filters(min_margin=0.5), ["c>a", "c>b"], {"below_margin": 1}),
        (Filters(max_margin=0.5), ["b>a", "c>b"], {"above_margin": 1}),
        (Filters(min_agreement=0.75), ["c>a"], {"below_agreement": 2}),
        (Filters(min_probability=0.7), ["c>a", "c>b"], {"below_probability": 1}),
        (Filters(max_entropy=0.6), ["c>a", "c>b"], {"above_entropy": 1}),
        (Filters(min_score=0.6), ["c>a", "c>b"], {"below_score": 1}),
        (Filters(max_length_ratio=2.0), ["b>a", "c>b"], {"length_ratio": 1}),
    ],
)
def test_each_filter(filters: Filters, kept: list[str], dropped: dict[str, int]) -> None:
    """p of b>a is 0.65, of c>a 0.9, of c>b 0.75; the judge x sides with c>a alone; lengths are 7, 13 and 23."""
    found = sifted(ABC, SCORES + SECOND, filters)
    assert names(found.group.decided) == kept
    assert dict(found.dropped) == dropped


def test_a_margin_at_the_bound_passes() -> None:
    assert names(sifted(ABC, SCORES, Filters(min_margin=0.3, max_margin=0.3)).group.decided) == ["b>a"]


def test_all_faults_of_filters_at_once() -> None:
    with pytest.raises(ConfigError) as fault:
        Filters(
            min_margin=0.5, max_margin=0.2, min_agreement=1.5, max_entropy=math.nan, near_duplicates=0.0,
            max_length_ratio=0.5, per_prompt=0,
        ).check()  # fmt: skip
    assert len(fault.value.faults) == 6
    Filters(min_margin=1.0, min_score=0.0, near_duplicates=1.0, max_entropy=0.0, per_prompt=1).check()


# -------------------------------------------------------------------------------------------------- near-duplicates

RIVER = "The river runs from the hills down to the sea, and on its way it turns a dozen old mills."
NEARLY = RIVER.replace("a dozen", "ten")
OTHER = "Bread is made of flour, water, salt and time; the time is what most people leave out."


def test_of_near_duplicates_the_most_judged_stays() -> None:
    group = [candidate_of("a", RIVER), candidate_of("b", NEARLY), candidate_of("c", OTHER), candidate_of("d", RIVER)]
    near = nearness(group, 0.6)
    panel = verdicts.read([pointwise("v", "b", 1.0), *both("x", "b", "c", 0.9, 0.9), pointwise("v", "a", 1.0)])
    assert near_duplicates([group], near, panel) == {"a", "d"}
    assert near_duplicates([group], near, verdicts.Panel({}, {})) == {"b", "d"}
    assert near_duplicates([group], nearness(group, 0.99), verdicts.Panel({}, {})) == {"d"}
    found = matched(group, frozenset({"a", "d"}))
    assert [(a.key, b.key) for a, b in found.pairs] == [("b", "c")]
    assert found.dropped == {"near_duplicate": 5}


def test_prompts_do_not_share_near_duplicates() -> None:
    groups = [[candidate_of("a", RIVER)], [candidate_of("b", RIVER), candidate_of("c", "", failure="cut")]]
    near = nearness([c for group in groups for c in group], 0.6)
    assert near_duplicates(groups, near, verdicts.Panel({}, {})) == frozenset()


# ---------------------------------------------------------------------------------------------------------- lengths


def choice(i: int, chosen: int, rejected: int, tokens: bool = False) -> Choice:
    good, bad = candidate_of(f"c{i:03d}", "x" * chosen), candidate_of(f"r{i:03d}", "x" * rejected)
    if tokens:
        good, bad = replace(good, tokens=rejected), replace(bad, tokens=chosen)
    return Choice(good, bad, 1.0, 1.0, 1)


def mean_ratio(choices: Sequence[Choice]) -> float:
    return math.fsum(map(length_ratio, choices)) / len(choices)


def test_length_is_in_tokens_where_both_are_known() -> None:
    assert length_ratio(choice(0, 20, 10)) == pytest.approx(math.log(2))
    assert length_ratio(choice(0, 20, 10, tokens=True)) == pytest.approx(-math.log(2))
    assert length_ratio(choice(0, 0, 10)) == pytest.approx(-math.log(10))


def test_balance_drops_the_fewest() -> None:
    """Ten pairs even, three with the chosen twice as long, one twice as short: dropping two is needed and enough."""
    choices = [choice(i, 10, 10) for i in range(10)] + [choice(10 + i, 20, 10) for i in range(3)] + [choice(13, 10, 20)]
    out = balance(choices, 0)
    assert len(out) == 2
    assert {chosen for chosen, _ in out} < {"c010", "c011", "c012"}
    assert balance(choices[:10], 0) == frozenset()
    assert balance([], 0) == frozenset()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), max_size=40), st.integers(0, 3), st.randoms())
def test_balance_never_makes_it_worse(lengths: list[tuple[int, int]], seed: int, rng: random.Random) -> None:
    choices = [choice(i, good, bad) for i, (good, bad) in enumerate(lengths)]
    out = balance(choices, seed)
    left = [c for c in choices if (c.chosen.key, c.rejected.key) not in out]
    if choices:
        assert left
        assert abs(mean_ratio(left)) <= max(LENGTH_TOLERANCE, abs(mean_ratio(choices)))
    both_ways = choices + [choice(100 + i, bad, good) for i, (good, bad) in enumerate(lengths)]
    assert balance(both_ways, seed) == frozenset()
    rng.shuffle(choices)
    assert balance(choices, seed) == out


def test_at_most_so_many_drawn_by_seed() -> None:
    choices = [choice(i, 5, 5) for i in range(6)]
    assert most(choices, None, 0) == choices
    assert most(choices, 6, 0) == choices
    drawn = {tuple(c.chosen.key for c in most(choices, 2, seed)) for seed in range(200)}
    assert all(pair == tuple(sorted(pair)) for pair in drawn)
    assert len(drawn) == 15


# -------------------------------------------------------------------------------------------- drafts and revisions


def step(
    key: str, kind: str, parent: str | None = None, text: str | None = None, failure: str | None = None
) -> Candidate:
    return replace(candidate_of(key, text, failure=failure), kind=kind, parent=parent)


CHAIN = [
    step("d", "sample"), step("k1", "critique", "d"), step("r1", "revision", "k1"), step("k2", "critique", "r1"),
    step("r2", "revision", "k2"),
]  # fmt: skip


def found_in(candidates: Sequence[Candidate]) -> tuple[list[tuple[str, str]], dict[str, int]]:
    found = lineages(candidates)
    return [(a.key, b.key) for a, b in found.pairs], {reason: n for reason, n in found.dropped.items() if n}


def test_the_last_revision_stands_for_its_draft() -> None:
    assert found_in(CHAIN) == ([("d", "r2")], {})
    assert lineages(CHAIN).revisions == {"r1", "r2"}
    cut = [*CHAIN[:4], step("r2", "revision", "k2", failure="cut")]
    assert found_in(cut) == ([("d", "r1")], {})


def test_two_revisions_of_a_draft_are_two_pairs() -> None:
    more = [*CHAIN[:3], step("k9", "critique", "d"), step("a9", "revision", "k9")]
    assert found_in(more) == ([("a9", "d"), ("d", "r1")], {})


@pytest.mark.parametrize(
    ("candidates", "reason"),
    [
        ([*CHAIN[:2], step("r1", "revision", "k1", failure="cut")], "failed_revision"),
        ([*CHAIN[:2], step("r1", "revision", "k1", text=" answer d\n")], "unchanged"),
        ([step("d", "sample", failure="cut"), *CHAIN[1:3]], "no_draft"),
        (CHAIN[1:3], "no_draft"),
        (CHAIN[2:3], "no_draft"),
        ([step("r1", "revision", "k1"), step("k1", "critique", "r1")], "no_draft"),
    ],
)
def test_chains_that_make_no_pair(candidates: list[Candidate], reason: str) -> None:
    assert found_in(candidates) == ([], {reason: 1})


def test_answers_without_a_revision_are_in_no_chain() -> None:
    assert found_in([step("d", "draft"), step("e", "sample"), step("k", "critique", "d")]) == ([], {})


def test_a_revision_that_hardly_changes_anything_is_a_near_duplicate() -> None:
    chain = [step("d", "draft", text=RIVER), step("k", "critique", "d"), step("r", "revision", "k", text=NEARLY)]
    assert lineages(chain, nearness(chain, 0.6)).dropped["near_duplicate"] == 1
    assert len(lineages(chain, nearness(chain, 0.95)).pairs) == 1


def test_revisions_are_chosen_without_judges_or_confirmed_by_them() -> None:
    answers = [c for c in CHAIN if c.kind != "critique"]
    for p, confirmed in ((0.2, ["r2>d"]), (0.8, []), (0.5, []), (None, [])):
        panel = verdicts.read(both("x", "d", "r2", p, p) + both("y", "d", "r2", 0.1, 0.1))
        among = lineages(CHAIN)
        plain = sift(answers, panel, ["x", "y"], Rule("lead", "x"), among=among)
        (one,) = plain.group.decided
        assert (one.chosen.key, one.rejected.key, one.margin) == ("r2", "d", 1.0)
        assert one.probability == (None if p is None else pytest.approx(1 - p))
        asked = sift(answers, panel, ["x", "y"], Rule("lead", "x"), Filters(confirm=True), among=among)
        assert names(asked.group.decided) == confirmed
        assert +asked.dropped == {0.2: {}, 0.8: {"unconfirmed": 1}, 0.5: {"tie": 1}, None: {"no_verdict": 1}}[p]
    (unjudged,) = sift(answers, verdicts.Panel({}, {}), [], Rule(), among=lineages(CHAIN)).group.decided
    assert (unjudged.agreement, unjudged.judges, unjudged.probability, unjudged.entropy) == (None, 0, None, None)
