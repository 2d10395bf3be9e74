"""What may never happen to a preference, whatever the judges say."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import assume, given, reject, settings, strategies as st
from judged import both, candidate_of, pointwise
from paired import JUDGED

from factory import verdicts
from factory.faults import FactoryError
from factory.pairing import Choice, Filters, Rule, strategies
from factory.pairing.combining import Outcome, combine, joint
from factory.pairing.sifting import Sifted, sift
from factory.schema import Candidate, Judgment
from factory.verdicts import Verdict

KEYS = "abcde"
CHANCE = st.one_of(st.none(), st.sampled_from([0.0, 0.48, 0.5, 0.52, 1.0]), st.floats(0, 1))


@st.composite
def judged(draw: st.DrawFn) -> tuple[list[Candidate], list[Judgment]]:
    """Answers to one prompt, some failed or alike, and a panel of two pairwise judges and a pointwise one."""
    texts = draw(st.lists(st.sampled_from(["one", "two", "two ", "three", ""]), min_size=2, max_size=5))
    failed = draw(st.sets(st.sampled_from(KEYS), max_size=2))
    candidates = [candidate_of(k, t, failure="cut" if k in failed else None) for k, t in zip(KEYS, texts, strict=False)]
    rows: list[Judgment] = []
    for judge in ("x", "y"):
        for a, b in itertools.combinations([c.key for c in candidates], 2):
            if draw(st.booleans()):
                rows += both(judge, a, b, draw(CHANCE), draw(CHANCE))
    for candidate in candidates:
        rows.append(pointwise("v", candidate.key, draw(st.one_of(st.none(), st.sampled_from([0.0, 0.5, 1.0])))))
    return candidates, rows


WAYS = ("lead", "mean", "majority", "weighted", "one_coin", "dawid_skene", "dependent")
WEIGHTS = {"v": 3.0, "x": 1.0, "y": 0.5}


def rule(way: str, lead: str | None = None, *, break_ties: bool = False) -> Rule:
    return Rule(way, lead, break_ties, weights=WEIGHTS if way == "weighted" else {})


RULES = st.builds(rule, st.sampled_from(WAYS), st.sampled_from(["x", "v"]), break_ties=st.booleans())
FILTERS = st.builds(
    Filters,
    min_margin=st.sampled_from([0.0, 0.2]),
    max_margin=st.sampled_from([1.0, 0.6]),
    min_agreement=st.sampled_from([0.0, 0.5]),
    min_probability=st.sampled_from([0.0, 0.6]),
    max_entropy=st.sampled_from([None, 0.6]),
    min_score=st.sampled_from([None, 0.5]),
    max_length_ratio=st.sampled_from([None, 1.5]),
)


def sifted_by(
    candidates: Sequence[Candidate], panel: verdicts.Panel, rule: Rule, filters: Filters | None = None
) -> Sifted:
    """What is sifted; a case with too few judges for the way to combine them is no case."""
    try:
        return sift(candidates, panel, ["v", "x", "y"], rule, filters)
    except FactoryError as fault:
        if "needs the votes of 3 judges" not in fault.what:
            raise
        raise reject() from fault


def paired(
    candidates: Sequence[Candidate], rows: Sequence[Judgment], rule: Rule, strategy: str, filters: Filters | None = None
) -> list[Choice]:
    sifted = sifted_by(candidates, verdicts.read(rows, rule.tie_margin), rule, filters)
    return strategies.get(strategy)(sifted.group, 7)


@settings(max_examples=300, deadline=None)
@given(judged(), RULES, st.sampled_from(JUDGED), FILTERS)
def test_what_may_never_happen(
    data: tuple[list[Candidate], list[Judgment]], rule: Rule, strategy: str, filters: Filters
) -> None:
    candidates, rows = data
    panel = verdicts.read(rows, rule.tie_margin)
    for choice in paired(candidates, rows, rule, strategy, filters):
        pair_of = (min(choice.chosen.key, choice.rejected.key), max(choice.chosen.key, choice.rejected.key))
        assert choice.chosen.text.strip() != choice.rejected.text.strip()
        assert choice.chosen.failure is None
        assert choice.rejected.failure is None
        assert filters.min_margin - 1e-6 <= choice.margin <= filters.max_margin + 1e-6
        assert choice.margin > 0
        assert choice.agreement is not None
        assert filters.min_agreement - 1e-6 <= choice.agreement <= 1
        assert choice.probability is not None
        assert filters.min_probability - 1e-6 <= choice.probability <= 1 + 1e-9
        assert choice.entropy is not None
        assert 0 <= choice.entropy <= (filters.max_entropy or math.log(3)) + 1e-6
        usable = [v for judge in ("v", "x", "y") if (v := panel.verdict(judge, pair_of)) is not None]
        assert choice.judges == len(usable) > 0
        if rule.combine in ("lead", "majority"):
            winner = "a" if choice.chosen.key < choice.rejected.key else "b"
            assert any(v.verdict == winner for v in usable) or rule.break_ties


@settings(max_examples=200, deadline=None)
@given(judged(), RULES, st.sampled_from(JUDGED), FILTERS, st.randoms())
def test_the_order_of_rows_does_not_matter(
    data: tuple[list[Candidate], list[Judgment]], rule: Rule, strategy: str, filters: Filters, rng: random.Random
) -> None:
    candidates, rows = data
    found = paired(candidates, rows, rule, strategy, filters)
    rng.shuffle(candidates)
    rng.shuffle(rows)
    assert paired(candidates, rows, rule, strategy, filters) == found


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(st.sampled_from("vxy"), st.floats(0, 1).map(lambda p: Verdict(p, verdicts.decide(p, 0.05)))),
    st.builds(rule, st.sampled_from(WAYS[:3]), st.sampled_from(["x", "v"]), break_ties=st.booleans()),
)
def test_exchanging_a_and_b_exchanges_the_verdict(said: dict[str, Verdict], rule: Rule) -> None:
    found = combine(said, rule)
    turned = combine({judge: verdict.turned() for judge, verdict in said.items()}, rule)
    if found is None or turned is None:
        assert found is turned is None
        return
    assert turned.p_a == pytest.approx(1 - found.p_a)
    if abs(abs(found.p_a - 0.5) - 0.05) > 1e-9:
        assert turned.verdict == found.turned().verdict


SAID = st.sampled_from([Verdict(0.9, "a"), Verdict(0.1, "b"), Verdict(0.5, "tie")])


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.dictionaries(st.sampled_from("vxy"), SAID, min_size=1), min_size=1, max_size=8),
    st.sampled_from(WAYS),
    st.data(),
)
def test_which_answer_is_called_a_is_nothing_to_go_by(
    said: list[dict[str, Verdict]], way: str, data: st.DataObject
) -> None:
    """Exchanging a and b of any of the pairs exchanges them in its outcome, and leaves the other pairs alone."""
    assume(way in WAYS[:4] or len({judge for of_pair in said for judge in of_pair}) == 3)
    turns = data.draw(st.lists(st.booleans(), min_size=len(said), max_size=len(said)))
    pairs = [(f"{i}a", f"{i}b") for i in range(len(said))]

    def outcomes(turn: Sequence[bool]) -> dict[Any, Outcome]:
        by_judge: dict[str, dict[Any, Verdict | None]] = {judge: {} for judge in "vxy"}
        for pair_of, of_pair, turned in zip(pairs, said, turn, strict=True):
            for judge, verdict in of_pair.items():
                by_judge[judge][pair_of] = verdict.turned() if turned else verdict
        return dict(joint(verdicts.Panel({}, by_judge), ["v", "x", "y"], pairs, rule(way, "v")).outcomes)

    plain, changed = outcomes([False] * len(said)), outcomes(turns)
    assert plain.keys() == changed.keys()
    for pair_of, turned in zip(pairs, turns, strict=True):
        if pair_of not in plain:
            continue
        one, other = plain[pair_of], changed[pair_of]
        assert (one.a, one.b, one.tie) == pytest.approx(
            (other.b, other.a, other.tie) if turned else (other.a, other.b, other.tie), abs=1e-9
        )
        assert one.a + one.b + one.tie == pytest.approx(1)
        if way != "mean":  # whose tie margin a rounding may cross
            assert one.verdict.verdict == (other.verdict.turned() if turned else other.verdict).verdict


@settings(max_examples=200, deadline=None)
@given(judged(), RULES, FILTERS)
def test_every_pair_is_a_choice_or_has_a_reason(
    data: tuple[list[Candidate], list[Judgment]], rule: Rule, filters: Filters
) -> None:
    candidates, rows = data
    sifted = sifted_by(candidates, verdicts.read(rows), rule, filters)
    answered = sum(c.failure is None for c in candidates)
    assert len(sifted.group.decided) + sifted.dropped.total() == sifted.pairs == answered * (answered - 1) // 2
    assert all(0 <= standing <= 1 for standing in sifted.group.standing.values())
