"""Rows to verdicts: what the judgments of one judge say of a pair, and what a few judges say of it together."""

from __future__ import annotations

import pytest
from judged import AT, both, candidate_of, pairwise, pointwise

from factory import verdicts
from factory.pairing import Rule
from factory.pairing.combining import combine
from factory.pairing.sifting import sift
from factory.verdicts import Verdict

# ------------------------------------------------------------------------------------------------------ of one judge


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


# ---------------------------------------------------------------------------------------------------------- together


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
