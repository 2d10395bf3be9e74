"""Pairing: what may never happen to a preference, whatever the judges say; strategies and labels on small cases."""

from __future__ import annotations

import itertools
import json
import math
import random
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, reject, settings, strategies as st
from judged import AT, both, candidate_of, pairwise, pointwise, prompt_of

from factory import verdicts
from factory.faults import FactoryError
from factory.pairing import Choice, Filters, Group, LabelRule, Rule, pair, strategies
from factory.pairing.combining import Outcome, combine, joint
from factory.pairing.grading import by_threshold, from_choices
from factory.pairing.sifting import Sifted, sift
from factory.schema import Candidate, Judgment, Label, Preference
from factory.store import Store
from factory.store.columns import from_bodies
from factory.verdicts import Verdict

# ------------------------------------------------------------------------------------------------------- properties

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
JUDGED = [name for name in strategies.names() if not strategies.facts(name)["lineage"]]


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


# -------------------------------------------------------------------------------------------------- rows to verdicts


def assert_near(found: Verdict | None, p_a: float, verdict: str, flipped: bool | None) -> None:
    assert found is not None
    assert found.p_a == pytest.approx(p_a)
    assert (found.verdict, found.flipped) == (verdict, flipped)


def test_both_orders_are_averaged_and_one_alone_is_nothing() -> None:
    panel = verdicts.read(
        [*both("x", "a", "b", 0.9, 0.4), pairwise("x", "a", "c", 0.9, "a"), *both("x", "b", "c", 0.9, None)]
    )
    assert_near(panel.verdict("x", ("a", "b")), 0.65, "a", True)
    assert panel.verdict("x", ("a", "c")) is None
    assert panel.verdict("x", ("b", "c")) is None


def test_texts_that_disagree_are_a_tie() -> None:
    panel = verdicts.read(
        [*both("x", "a", "b", 1.0, 0.0), *both("x", "a", "c", 1.0, 0.5), *both("x", "b", "c", 0.0, 0.0)]
    )
    assert panel.verdict("x", ("a", "b")) == Verdict(0.5, "tie", True)
    assert panel.verdict("x", ("a", "c")) == Verdict(0.5, "tie", True)
    assert panel.verdict("x", ("b", "c")) == Verdict(0.0, "b", False)


def test_aspects_that_differ_from_each_other_are_no_flip() -> None:
    """Two aspects say a in both orders, one says b in both: 2/3 for a. An aspect whose orders disagree is a half."""
    rows = [*both("j", "x", "y", 1.0, 1.0, aspect="one"), *both("j", "x", "y", 1.0, 1.0, aspect="two")]
    third = both("j", "x", "y", 0.0, 0.0, aspect="three")
    assert verdicts.combine_orders([*rows, *third]) == Verdict(pytest.approx(2 / 3), "a", False)
    torn = both("j", "x", "y", 1.0, 0.5, aspect="three")
    assert verdicts.combine_orders([*rows, *torn]) == Verdict(pytest.approx(5 / 6), "a", True)


def test_the_tie_margin() -> None:
    rows = both("x", "a", "b", 0.60, 0.46)
    assert_near(verdicts.read(rows, 0.05).verdict("x", ("a", "b")), 0.53, "tie", True)
    assert_near(verdicts.read(rows, 0.02).verdict("x", ("a", "b")), 0.53, "a", True)


def test_the_last_reading_counts() -> None:
    later = AT.replace(year=2026)
    rows = [pointwise("v", "a", None), pointwise("v", "a", 1.0, at=later), pointwise("v", "b", 0.5)]
    assert verdicts.read(rows).verdict("v", ("a", "b")) == Verdict(0.75, "a")


def test_aspects_are_averaged_and_one_that_failed_leaves_nothing() -> None:
    rows = [pointwise("r", "a", s, low=1, high=5, aspect=n) for n, s in (("help", 5.0), ("truth", 2.0))]
    rows += [pointwise("r", "b", s, low=1, high=5, aspect=n) for n, s in (("help", 5.0), ("truth", None))]
    panel = verdicts.read(rows)
    assert panel.scores["r"]["a"] == verdicts.Score(3.5, 0.625)
    assert panel.scores["r"]["b"] is None


def test_canaries_are_no_verdicts() -> None:
    rows = [pairwise("x", "a", "b", 0.1, order, canary="empty") for order in ("a", "b")]
    assert verdicts.read(rows).pairs == {}


# ---------------------------------------------------------------------------------------------------------- combining


def test_the_lead_decides_and_the_others_count_for_agreement() -> None:
    said = {"v": Verdict(0.75, "a"), "x": Verdict(0.1, "b"), "y": Verdict(0.5, "tie")}
    assert combine(said, Rule("lead", "v")) == Verdict(0.75, "a")
    rows = [pointwise("v", "a", 1.0), pointwise("v", "b", 0.5), *both("x", "a", "b", 0.1, 0.1)]
    (choice,) = sift(
        [candidate_of("a"), candidate_of("b")], verdicts.read(rows), ["v", "x"], Rule("lead", "v")
    ).group.decided
    assert (choice.chosen.key, choice.margin, choice.agreement, choice.judges) == ("a", 0.5, 0.5, 2)


def test_others_break_the_leads_ties_only_when_asked() -> None:
    said = {"v": Verdict(0.5, "tie"), "x": Verdict(0.9, "a")}
    assert combine(said, Rule("lead", "v")) == Verdict(0.5, "tie")
    assert combine(said, Rule("lead", "v", break_ties=True)) == Verdict(0.9, "a")
    assert combine({"x": Verdict(0.9, "a")}, Rule("lead", "v", break_ties=True)) is None


def test_mean_and_majority_can_differ() -> None:
    said = {"x": Verdict(0.6, "a"), "y": Verdict(0.6, "a"), "z": Verdict(0.0, "b")}
    assert_near(combine(said, Rule("mean")), 0.4, "b", None)
    assert_near(combine(said, Rule("majority")), 2 / 3, "a", None)
    assert combine({"x": Verdict(0.9, "a"), "y": Verdict(0.2, "b")}, Rule("majority")) == Verdict(0.5, "tie")
    assert combine({}, Rule("mean")) is None


# --------------------------------------------------------------------------------------------------------- strategies


def scored(**scores: float) -> Group:
    rows = [pointwise("v", key, score) for key, score in scores.items()]
    return sift([candidate_of(key) for key in scores], verdicts.read(rows), ["v"], Rule("lead", "v")).group


def names(choices: Sequence[Choice]) -> list[str]:
    return [f"{c.chosen.key}>{c.rejected.key}" for c in choices]


def test_strategies_on_scores() -> None:
    group = scored(a=0.2, b=1.0, c=0.6, d=0.6)
    assert names(strategies.get("all")(group, 0)) == ["b>a", "b>c", "b>d", "c>a", "d>a"]
    assert names(strategies.get("best_worst")(group, 0)) == ["b>a"]
    assert names(strategies.get("max_margin")(group, 0)) == ["b>a"]
    drawn = {names(strategies.get("random")(group, seed))[0] for seed in range(50)}
    assert drawn == {"b>a", "b>c", "b>d", "c>a", "d>a"}


def test_equals_are_drawn_by_seed() -> None:
    group = scored(a=1.0, b=1.0, c=0.0, d=0.0)
    for strategy in ("best_worst", "max_margin"):
        drawn = {names(strategies.get(strategy)(group, seed))[0] for seed in range(50)}
        assert drawn == {"a>c", "a>d", "b>c", "b>d"}


def test_of_equals_the_pair_that_more_judges_saw() -> None:
    rows = [pointwise("v", k, s) for k, s in zip("abcd", (1.0, 1.0, 0.0, 0.0), strict=True)] + both(
        "x", "b", "c", 0.5, 0.5
    )
    group = sift([candidate_of(k) for k in "abcd"], verdicts.read(rows), ["v", "x"], Rule("lead", "v")).group
    for strategy in ("best_worst", "max_margin"):
        assert {names(strategies.get(strategy)(group, seed))[0] for seed in range(20)} == {"b>c"}


def test_best_and_worst_must_have_met() -> None:
    """b has the best record and a the worst, but a was only judged against c."""
    rows = [*both("x", "b", "c", 0.9, 0.9), *both("x", "a", "c", 0.2, 0.2)]
    group = sift([candidate_of(k) for k in "abc"], verdicts.read(rows), ["x"], Rule("lead", "x")).group
    assert group.standing == pytest.approx({"a": 0.2, "b": 0.9, "c": 0.45})
    assert names(strategies.get("best_worst")(group, 0)) == ["b>c"]


def test_nothing_decided_is_nothing_chosen() -> None:
    for strategy in strategies.names():
        assert strategies.get(strategy)(scored(a=1.0, b=1.0), 0) == []


# ------------------------------------------------------------------------------------------------------------- labels


def graded(candidates: Sequence[Candidate], rows: Sequence[Judgment], rule: Rule, threshold: float) -> list[Any]:
    panel = verdicts.read(rows)
    sifted = sift(candidates, panel, panel.judges(), rule)
    return [(g.candidate.key, g.label, g.score) for g in by_threshold(candidates, sifted.scores, threshold).graded]


def test_labels_by_all_met_else_by_threshold() -> None:
    candidates = [candidate_of(k, failure="cut" if k == "d" else None) for k in "abcde"]
    rows = [pointwise("v", "a", 1.0, met=True), pointwise("v", "b", 0.9, met=False), pointwise("v", "c", None)]
    rows += [pointwise("r", "a", 2.0, low=1, high=5), pointwise("r", "b", 4.0, low=1, high=5)]
    assert graded(candidates, rows, Rule("lead", "v"), 0.5) == [("a", True, 1.0), ("b", False, 0.9)]
    assert graded(candidates, rows, Rule("lead", "r"), 0.5) == [("a", False, 0.25), ("b", True, 0.75)]
    assert graded(candidates, rows, Rule("mean"), 0.7) == [("a", False, 0.625), ("b", True, pytest.approx(0.825))]
    weighted = Rule("weighted", weights={"v": 3.0, "r": 1.0})
    assert graded(candidates, rows, weighted, 0.82) == [("a", False, 0.8125), ("b", True, pytest.approx(0.8625))]


def test_labels_of_a_pairwise_lead_go_by_standing() -> None:
    found = graded([candidate_of("a"), candidate_of("b")], both("x", "a", "b", 0.9, 0.7), Rule("lead", "x"), 0.5)
    assert found == [("a", True, 0.8), ("b", False, pytest.approx(0.2))]


def test_labels_from_pairs_leave_out_what_is_both() -> None:
    found = from_choices(strategies.get("all")(scored(a=0.0, b=0.5, c=1.0), 0))
    assert [(g.candidate.key, g.label) for g in found.graded] == [("a", False), ("c", True)]
    assert found.graded[1].score == pytest.approx((1 + 0.75) / 2)
    assert found.dropped == {"both": 1}


# ---------------------------------------------------------------------------------------------------- into the store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store", create=True) as opened:
        yield opened


NO_LABELS = LabelRule(by="none")


def fill(store: Store, long: str = "") -> None:
    """Two prompts: one with scores 1, .5, .5 and a failed answer, one all equal. The answer `long` has 20 letters."""
    one, two = prompt_of("Tell me about rivers."), prompt_of("Tell me about bread.")
    store.append("prompts", [one, two])
    texts = {long: "a long answer indeed"}
    first = [candidate_of(k, texts.get(k), prompt=one) for k in "abc"] + [candidate_of("d", failure="cut", prompt=one)]
    store.append("candidates", [*first, *(candidate_of(k, prompt=two) for k in "ef")])
    scores = {"a": 1.0, "b": 0.5, "c": 0.5, "e": 0.5, "f": 0.5}
    rows = [pointwise("v", k, s, met=s == 1.0) for k, s in scores.items()]
    store.append("judgments", [*rows, *both("x", "a", "b", 0.1, 0.2)])


def test_preferences_and_labels_are_written_once(store: Store) -> None:
    fill(store)
    report = pair(store, run="r", lead="v", strategy="all")
    assert (report.prompts, report.candidates, report.failed_candidates, report.pairs) == (2, 6, 1, 4)
    assert (report.preferences, report.written, report.labels, report.desirable) == (2, 2, 5, 1)
    assert report.dropped == {"tie": 2}
    assert report.mean_margin == pytest.approx(0.5)
    rows = {row.rejected_key: row for row in store.rows(Preference)}
    assert rows.keys() == {"b", "c"}
    assert rows["b"].chosen == [{"role": "assistant", "content": "answer a"}]
    assert rows["b"].prompt == prompt_of("Tell me about rivers.").messages
    assert (rows["b"].agreement, rows["b"].judges, rows["c"].agreement, rows["c"].judges) == (0.5, 2, 1.0, 1)
    assert {row.candidate_key: row.label for row in store.rows(Label)} == dict.fromkeys("bcef", False) | {"a": True}
    again = pair(store, run="r", lead="v", strategy="all")
    assert (again.preferences, again.written, again.labels_written) == (2, 0, 0)
    other = pair(store, run="r", lead="v", strategy="best_worst")
    assert (other.preferences, other.written, other.held) == (1, 1, 3)


def test_rows_carry_probability_entropy_and_weight(store: Store) -> None:
    fill(store)
    pair(store, run="r", lead="v", strategy="all", weights="margin")
    for row in store.rows(Preference):
        assert (row.probability, row.margin, row.weight) == (0.75, 0.5, 0.5)
        assert row.entropy == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    pair(store, run="r", judges=["x"], strategy="max_margin", weights="probability", labels=NO_LABELS)
    (row,) = store.rows(Preference, {"strategy": "max_margin"})
    assert row.weight == row.probability == pytest.approx(0.85)


def test_weights_by_consistency_of_the_prompt(store: Store) -> None:
    fill(store)
    keys = [row["prompt_key"] for row in store.read("candidates") if row["key"] == "a"]
    report = pair(store, run="r", lead="v", strategy="all", weights="consistency", consistency={keys[0]: 0.25})
    assert {row.weight for row in store.rows(Preference)} == {0.25}
    assert (report.preferences, report.mean_probability) == (2, 0.75)
    other = pair(store, run="r", lead="v", strategy="random", weights="consistency", consistency={"another": 1.0})
    assert (other.preferences, other.dropped["no_weight"]) == (0, 1)


def test_filters_after_the_strategy_are_counted(store: Store) -> None:
    """Both preferences choose "answer a", the longer; without one of them the other stays."""
    fill(store, long="a")
    balanced = pair(store, run="r", lead="v", strategy="all", filters=Filters(length_balanced=True))
    assert balanced.dropped == {"tie": 2}  # no loss of a pair makes the lengths more alike
    few = pair(store, run="r", lead="v", strategy="all", filters=Filters(per_prompt=1))
    assert (few.preferences, few.dropped) == (1, {"per_prompt": 1, "tie": 2})
    assert few.mean_length_ratio == pytest.approx(math.log(20 / 8))


def test_near_duplicates_are_left_out_of_the_round(store: Store) -> None:
    fill(store)
    report = pair(store, run="r", lead="v", strategy="all", filters=Filters(near_duplicates=0.9))
    assert (report.preferences, report.dropped) == (2, {"tie": 2})  # "answer a" and "answer b" share no trigram
    same = candidate_of("z", "Answer A!")
    store.append("candidates", [same])
    store.append("judgments", [pointwise("v", "z", 1.0)])
    again = pair(store, run="r", lead="v", strategy="all", filters=Filters(near_duplicates=0.9))
    assert (again.preferences, again.dropped) == (2, {"near_duplicate": 3, "tie": 2})


def test_what_is_held_beside_is_told(store: Store) -> None:
    fill(store)
    assert pair(store, run="r", lead="v", strategy="all").warnings == []
    report = pair(store, run="r", lead="v", strategy="best_worst")
    assert report.held_by == {"all": 2, "best_worst": 1}
    assert any("all (2)" in warning for warning in report.warnings)
    fewer = pair(store, run="r", lead="v", strategy="all", filters=Filters(per_prompt=1))
    assert any("hold 1 preferences of all that an earlier call made" in warning for warning in fewer.warnings)
    again = pair(store, run="r", lead="v", strategy="all")
    assert (again.held_by, again.written) == ({"all": 2, "best_worst": 1}, 0)


def test_labels_of_one_kind_are_warned_of(store: Store) -> None:
    fill(store)
    report = pair(store, run="r", judges=["x"], labels=LabelRule(threshold=0.0))
    assert (report.labels, report.desirable) == (2, 2)
    assert any("all 2 labels are desirable" in warning for warning in report.warnings)


def test_labels_by_quantile_with_weights(store: Store) -> None:
    """Scores 1 and four of .5: the upper quarter is the one, the others are all alike."""
    fill(store)
    report = pair(store, run="r", lead="v", labels=LabelRule(by="quantile", quantiles=(0.0, 1.0), weights="balanced"))
    assert (report.labels, report.desirable, report.labels_dropped) == (5, 1, {})
    rows = store.rows(Label)
    assert {(row.label, row.weight) for row in rows} == {(True, 1.0), (False, 0.25)}
    assert {row.strategy for row in rows} == {"best_worst"}


def test_a_label_that_weighs_nothing_is_none(store: Store) -> None:
    fill(store)
    report = pair(store, run="r", judges=["x"], labels=LabelRule(threshold=0.15, weights="distance"))
    assert report.labels_dropped == {"no_score": 3, "no_weight": 1}
    assert [(row.candidate_key, row.label) for row in store.rows(Label)] == [("b", True)]


def test_drafts_and_their_revisions(store: Store) -> None:
    """Without any judgment: the revision over its draft, and no critique is an answer."""
    one = prompt_of()
    store.append("prompts", [one])
    steps = [("d", "sample", None), ("k", "critique", "d"), ("r", "revision", "k"), ("e", "sample", None)]
    store.append("candidates", [replace(candidate_of(key), kind=kind, parent=parent) for key, kind, parent in steps])
    report = pair(store, run="r", strategy="draft_revision", lead="nobody", combine="lead")
    assert (report.candidates, report.pairs, report.preferences, report.labels) == (3, 1, 1, 0)
    (row,) = store.rows(Preference)
    assert (row.chosen_key, row.rejected_key, row.margin, row.judges, row.weight) == ("r", "d", 1.0, 0, 1.0)
    assert (row.agreement, row.probability, row.strategy) == (None, None, "draft_revision")
    store.append("judgments", both("x", "d", "r", 0.9, 0.9))
    confirmed = pair(store, run="r", strategy="draft_revision", filters=Filters(confirm=True), labels=NO_LABELS)
    assert (confirmed.preferences, confirmed.dropped) == (0, {"unconfirmed": 1})
    assert pair(store, run="r", kind=["sample", "revision"]).dropped["no_verdict"] == 2


def test_a_model_of_the_judges_is_reported(store: Store) -> None:
    """Three judges on the pairs of twelve prompts; the third is always wrong, and counts against."""
    said = {"x": 0.9, "y": 0.9, "z": 0.1}
    for i in range(12):
        one = prompt_of(f"Tell me about {i}.")
        store.append("prompts", [one])
        store.append("candidates", [candidate_of(f"{i}a", prompt=one), candidate_of(f"{i}b", prompt=one)])
        turn = i % 2 == 0
        store.append(
            "judgments",
            [row for j, p in said.items() for row in both(j, f"{i}a", f"{i}b", *((p, p) if turn else (1 - p, 1 - p)))],
        )
    report = pair(store, run="r", combine="one_coin", labels=NO_LABELS)
    assert report.preferences == 12
    accuracy = {name: value for name, value in report.judge_accuracy.items() if value is not None}
    assert accuracy["x"] > 0.9
    assert accuracy["z"] < 0.1
    assert any("less often than chance" in warning for warning in report.warnings)
    assert all(
        row.chosen_key.endswith("a" if int(row.chosen_key[:-1]) % 2 == 0 else "b") for row in store.rows(Preference)
    )
    assert pair(store, run="r", combine="majority", labels=NO_LABELS).judge_accuracy == {}


def test_a_quarantined_batch_counts_for_nothing(store: Store) -> None:
    fill(store)
    rows = store.rows(Judgment)
    batch = [replace(row, key=f"q{row.key}", judge="q", batch="q1") for row in rows if row.judge == "x"]
    fooled = [
        replace(pairwise("q", "a", f"canary{i}", 0.0, order, canary="empty"), batch="q1")
        for i in range(3)
        for order in ("a", "b")
    ]
    store.append("judgments", batch + fooled)
    with pytest.raises(FactoryError, match="no judge named 'q'"):
        pair(store, run="r", judges=["q"])
    kept = pair(store, run="r", judges=["q"], quarantine=False, labels=NO_LABELS)
    assert (kept.preferences, kept.quarantined) == (1, 0)
    assert pair(store, run="r", lead="v", labels=NO_LABELS).quarantined == 1


def test_that_all_is_in_quarantine_is_said(store: Store) -> None:
    one = prompt_of()
    store.append("prompts", [one])
    store.append("candidates", [candidate_of("a"), candidate_of("b")])
    fooled = [pairwise("q", "a", f"c{i}", 0.0, order, canary="empty") for i in range(3) for order in ("a", "b")]
    store.append("judgments", [replace(row, batch="q1") for row in both("q", "a", "b", 0.9, 0.9) + fooled])
    with pytest.raises(FactoryError, match="all judgments are in quarantine"):
        pair(store, run="r")


NEWER = ["probability", "entropy", "weight", "flipped"]


@pytest.mark.parametrize("sealed", [False, True])
def test_preferences_of_an_older_store_still_read(store: Store, monkeypatch: pytest.MonkeyPatch, sealed: bool) -> None:
    """Rows that were written before preferences had a weight have weight 1, in the journal and in sealed parts."""
    fill(store)
    pair(store, run="r", lead="v", strategy="all", weights="margin")
    if sealed:
        monkeypatch.setattr("factory.store.from_bodies", lambda *given: from_bodies(*given).drop_columns(NEWER))
        assert store._seal_table("preferences") == 2
        monkeypatch.undo()
    else:
        strip_journal(store.folder / "journal.sqlite")
    rows = store.rows(Preference)
    assert [(row.weight, row.probability, row.entropy, row.margin) for row in rows] == [(1.0, None, None, 0.5)] * 2
    assert not any(row.flipped for row in rows)
    found = store.sql("SELECT weight, probability FROM preferences").rows()
    assert found == [{"weight": 1.0, "probability": None}] * 2
    report = pair(store, run="r", lead="v", strategy="all")
    assert (report.preferences, report.written, report.held) == (2, 0, 2)


def strip_journal(path: Path) -> None:
    with sqlite3.connect(path) as db:
        for key, body in db.execute("SELECT id, body FROM rows WHERE tbl = 'preferences'").fetchall():
            values = {name: value for name, value in json.loads(body).items() if name not in NEWER}
            db.execute("UPDATE rows SET body = ? WHERE id = ?", (json.dumps(values), key))


def test_a_preference_against_a_kept_one_is_refused(store: Store) -> None:
    fill(store)
    pair(store, run="r", lead="v", strategy="all")
    report = pair(store, run="r", lead="x", strategy="all", labels=NO_LABELS)
    assert (report.preferences, report.labels) == (0, 0)
    assert report.dropped["contradicts_kept"] == 1
    assert len(store.rows(Preference)) == 2


def test_a_pairing_with_a_name_stands_for_itself(store: Store) -> None:
    """Another judge leads: under a name of its own its pairs and labels may be the opposite of the first ones."""
    fill(store)
    pair(store, run="r", lead="v", strategy="all")
    report = pair(store, run="r", lead="x", strategy="all", name="by x")
    assert (report.preferences, report.labels, report.labels_refused) == (1, 2, 0)
    assert report.held_by == {"all": 2, "by x": 1}
    assert {(row.chosen_key, row.strategy) for row in store.rows(Preference)} == {("a", "all"), ("b", "by x")}
    assert {row.strategy for row in store.rows(Label)} == {"all", "by x"}
    again = pair(store, run="r", lead="x", strategy="all", name="by x")
    assert (again.written, again.labels_written) == (0, 0)


def test_a_label_against_a_kept_one_is_refused_and_counted(store: Store) -> None:
    """By the verifier only a is desirable; by x, which prefers b to a and saw no other, it is the other way round."""
    fill(store)
    pair(store, run="r", lead="v", strategy="all")
    report = pair(store, run="r", lead="x", strategy="all")
    assert (report.labels_refused, report.labels, report.labels_written) == (2, 0, 0)
    assert {row.candidate_key: row.label for row in store.rows(Label)} == dict.fromkeys("bcef", False) | {"a": True}


def test_a_round_goes_on_with_the_name_that_its_labels_once_got(store: Store) -> None:
    """They went by the way to label: the same call again labels nothing twice."""
    fill(store)
    pair(store, run="r", lead="v", name="threshold")
    again = pair(store, run="r", lead="v")
    assert (again.labels, again.labels_written) == (5, 0)
    assert {row.strategy for row in store.rows(Label)} == {"threshold"}
    assert {row.strategy for row in store.rows(Preference)} == {"threshold", "best_worst"}


def test_labels_of_an_earlier_call_that_this_one_does_not_make_are_told(store: Store) -> None:
    fill(store)
    pair(store, run="r", lead="v")
    pairs = pair(store, run="r", lead="v", labels=LabelRule(by="pairs"))
    told = "hold 3 labels of best_worst that an earlier call made and this one does not"
    assert any(told in warning for warning in pairs.warnings)
    for labels in (LabelRule(), NO_LABELS):
        assert not any("labels of" in warning for warning in pair(store, run="r", lead="v", labels=labels).warnings)


def test_reasons_and_preferences_add_up(store: Store) -> None:
    fill(store)
    for strategy in JUDGED:
        report = pair(store, run="r", lead="v", strategy=strategy, filters=Filters(min_margin=0.6))
        assert report.preferences + sum(report.dropped.values()) == report.pairs
        assert report.dropped == {"below_margin": 2, "tie": 2}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "which judge leads: v, x"),
        ({"lead": "w"}, "no judge named 'w'"),
        ({"lead": "v", "strategy": "best_wurst"}, "did you mean 'best_worst'"),
        ({"combine": "meen"}, "did you mean 'mean'"),
        ({"lead": "v", "run": "other"}, "has no judgments"),
        ({"lead": "v", "split": "final"}, "no candidates"),
        ({"strategy": "draft_revision"}, "has no revisions"),
        ({"strategy": "draft_revision", "min_margin": 0.5}, "without asking the judges"),
        ({"strategy": "draft_revision", "weights": "margin"}, "without asking the judges"),
        ({"lead": "v", "filters": Filters(confirm=True)}, "goes by the judges already"),
        ({"lead": "v", "weights": "consistency"}, "go together"),
        ({"lead": "v", "weights": "consitency"}, "did you mean 'consistency'"),
        ({"lead": "v", "labels": LabelRule(by="treshold")}, "did you mean 'threshold'"),
        ({"lead": "v", "labels": LabelRule(quantiles=(0.8, 0.2))}, "the lower first"),
        ({"lead": "v", "labels": LabelRule(threshold=7.0)}, "threshold 7.0 is not between 0 and 1"),
    ],
)
def test_faults_say_what_to_do(store: Store, options: dict[str, Any], told: str) -> None:
    fill(store)
    with pytest.raises(FactoryError, match=told):
        pair(store, **({"run": "r"} | options))
