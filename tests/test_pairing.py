"""Pairing: what may never happen to a preference, whatever the judges say; strategies and labels on small cases."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from judged import AT, both, candidate_of, pairwise, pointwise, prompt_of

from factory import verdicts
from factory.faults import FactoryError
from factory.pairing import Choice, Group, Rule, combine, from_choices, grade, pair, sift, strategies
from factory.schema import Candidate, Judgment, Label, Preference
from factory.store import Store
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


RULES = st.builds(
    Rule,
    combine=st.sampled_from(["lead", "mean", "majority"]),
    lead=st.sampled_from(["x", "v"]),
    break_ties=st.booleans(),
    min_margin=st.sampled_from([0.0, 0.2]),
)


def paired(candidates: Sequence[Candidate], rows: Sequence[Judgment], rule: Rule, strategy: str) -> list[Choice]:
    sifted = sift(candidates, verdicts.read(rows, rule.tie_margin), ["v", "x", "y"], rule)
    return strategies.get(strategy)(sifted.group, 7)


@settings(max_examples=300, deadline=None)
@given(judged(), RULES, st.sampled_from(["best_worst", "max_margin", "random", "all"]))
def test_what_may_never_happen(data: tuple[list[Candidate], list[Judgment]], rule: Rule, strategy: str) -> None:
    candidates, rows = data
    panel = verdicts.read(rows, rule.tie_margin)
    for choice in paired(candidates, rows, rule, strategy):
        pair_of = (min(choice.chosen.key, choice.rejected.key), max(choice.chosen.key, choice.rejected.key))
        assert choice.chosen.text.strip() != choice.rejected.text.strip()
        assert choice.chosen.failure is None
        assert choice.rejected.failure is None
        assert rule.min_margin - 1e-6 <= choice.margin <= 1
        assert choice.margin > 0
        assert 0 <= choice.agreement <= 1
        usable = [v for judge in ("v", "x", "y") if (v := panel.verdict(judge, pair_of)) is not None]
        assert choice.judges == len(usable) > 0
        assert any(v.verdict == ("a" if choice.chosen.key < choice.rejected.key else "b") for v in usable) or (
            rule.combine == "mean"
        )


@settings(max_examples=200, deadline=None)
@given(judged(), RULES, st.sampled_from(["best_worst", "max_margin", "random", "all"]), st.randoms())
def test_the_order_of_rows_does_not_matter(
    data: tuple[list[Candidate], list[Judgment]], rule: Rule, strategy: str, rng: random.Random
) -> None:
    candidates, rows = data
    found = paired(candidates, rows, rule, strategy)
    rng.shuffle(candidates)
    rng.shuffle(rows)
    assert paired(candidates, rows, rule, strategy) == found


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(st.sampled_from("vxy"), st.floats(0, 1).map(lambda p: Verdict(p, verdicts.decide(p, 0.05)))), RULES
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


@settings(max_examples=200, deadline=None)
@given(judged(), RULES)
def test_every_pair_is_a_choice_or_has_a_reason(data: tuple[list[Candidate], list[Judgment]], rule: Rule) -> None:
    candidates, rows = data
    sifted = sift(candidates, verdicts.read(rows), ["v", "x", "y"], rule)
    answered = sum(c.failure is None for c in candidates)
    assert len(sifted.group.decided) + sifted.dropped.total() == answered * (answered - 1) // 2
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


def test_labels_by_all_met_else_by_threshold() -> None:
    candidates = [candidate_of(k, failure="cut" if k == "d" else None) for k in "abcde"]
    rows = [pointwise("v", "a", 1.0, met=True), pointwise("v", "b", 0.9, met=False), pointwise("v", "c", None)]
    rows += [pointwise("r", "a", 2.0, low=1, high=5), pointwise("r", "b", 4.0, low=1, high=5)]
    panel = verdicts.read(rows)
    by_verifier = grade(candidates, panel, ["v", "r"], Rule("lead", "v"), {}, 0.5)
    assert [(g.candidate.key, g.label, g.score) for g in by_verifier] == [("a", True, 1.0), ("b", False, 0.9)]
    by_rating = grade(candidates, panel, ["v", "r"], Rule("lead", "r"), {}, 0.5)
    assert [(g.candidate.key, g.label, g.score) for g in by_rating] == [("a", False, 0.25), ("b", True, 0.75)]
    by_mean = grade(candidates, panel, ["v", "r"], Rule("mean"), {}, 0.7)
    assert [(g.candidate.key, g.label, g.score) for g in by_mean] == [
        ("a", False, 0.625),
        ("b", True, pytest.approx(0.825)),
    ]


def test_labels_of_a_pairwise_lead_go_by_standing() -> None:
    rows = both("x", "a", "b", 0.9, 0.7)
    sifted = sift([candidate_of("a"), candidate_of("b")], verdicts.read(rows), ["x"], Rule("lead", "x"))
    graded = grade(
        [candidate_of("a"), candidate_of("b")],
        verdicts.read(rows),
        ["x"],
        Rule("lead", "x"),
        sifted.group.standing,
        0.5,
    )
    assert [(g.candidate.key, g.label, g.score) for g in graded] == [("a", True, 0.8), ("b", False, pytest.approx(0.2))]


def test_labels_from_pairs_leave_out_what_is_both() -> None:
    graded = from_choices(strategies.get("all")(scored(a=0.0, b=0.5, c=1.0), 0))
    assert [(g.candidate.key, g.label) for g in graded] == [("a", False), ("c", True)]
    assert graded[1].score == pytest.approx((1 + 0.75) / 2)


# ---------------------------------------------------------------------------------------------------- into the store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store", create=True) as opened:
        yield opened


def fill(store: Store) -> None:
    """Two prompts: one with scores 1, .5, .5 and a failed answer, one all equal."""
    one, two = prompt_of("Tell me about rivers."), prompt_of("Tell me about bread.")
    store.append("prompts", [one, two])
    first = [candidate_of(k, prompt=one) for k in "abc"] + [candidate_of("d", failure="cut", prompt=one)]
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


def test_a_preference_against_a_kept_one_is_refused(store: Store) -> None:
    fill(store)
    pair(store, run="r", lead="v", strategy="all")
    report = pair(store, run="r", lead="x", strategy="max_margin", label_by="none")
    assert (report.preferences, report.labels) == (0, 0)
    assert report.dropped["contradicts_kept"] == 1
    assert len(store.rows(Preference)) == 2


def test_a_label_against_a_kept_one_is_refused_and_counted(store: Store) -> None:
    """By the verifier only a is desirable; by x, which prefers b to a and saw no other, it is the other way round."""
    fill(store)
    pair(store, run="r", lead="v", strategy="all")
    report = pair(store, run="r", lead="x", strategy="all")
    assert (report.labels_refused, report.labels, report.labels_written) == (2, 0, 0)
    assert {row.candidate_key: row.label for row in store.rows(Label)} == dict.fromkeys("bcef", False) | {"a": True}


def test_reasons_and_preferences_add_up(store: Store) -> None:
    fill(store)
    for strategy in strategies.names():
        report = pair(store, run="r", lead="v", strategy=strategy, min_margin=0.6)
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
    ],
)
def test_faults_say_what_to_do(store: Store, options: dict[str, Any], told: str) -> None:
    fill(store)
    with pytest.raises(FactoryError, match=told):
        pair(store, **({"run": "r"} | options))
