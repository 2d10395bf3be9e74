"""Rules that stop at a limit: rounds, time, tokens, money, KL, too few rows to train on."""

from __future__ import annotations

from typing import Any

from rounds_so_far import NAN, history, report

from factory.schema import Estimate
from factory.stopping import Budget, KlBudget, LabelStarvation, MaxRounds, RoundEvidence


def test_max_rounds() -> None:
    rule = MaxRounds(rounds=2)
    assert not rule(history(20)).stop
    assert not rule(history(20, 40)).stop
    decision = rule(history(20, 40, 60))
    assert decision.stop
    assert decision.reason == "2 of at most 2 rounds done"
    assert decision.evidence == {"rounds": 2}


def test_budget_of_time_is_spent_or_would_be_overrun() -> None:
    """Three rounds of 100 s: 300 s used. 300 is spent, 399 would be overrun by a fourth, 400 would not."""
    assert Budget(seconds=300)(history(1, 2, 3)).stop
    ahead = Budget(seconds=399)(history(1, 2, 3))
    assert ahead.stop
    assert ahead.reason == "300 of 399 seconds used, and another round like the last would take 100"
    assert not Budget(seconds=400)(history(1, 2, 3)).stop
    assert not Budget(seconds=399, look_ahead=False)(history(1, 2, 3)).stop
    assert not Budget(seconds=150)(history(1)).stop  # round 0 does not tell what a round takes


def test_budget_of_tokens_and_of_money() -> None:
    assert Budget(tokens=3000)(history(1, 2, 3)).evidence["over"] == ["tokens"]
    assert not Budget(tokens=4000)(history(1, 2, 3)).stop
    assert Budget(cost=1.5)(history(1, 2, 3)).evidence["over"] == ["cost"]
    both = Budget(seconds=1000, cost=1.0)(history(1, 2, 3))
    assert both.evidence["over"] == ["cost"]
    assert "300 of 1,000 seconds used" in both.reason


def test_budget_says_that_a_price_is_unknown() -> None:
    rounds = [*history(1, 2), RoundEvidence(round=2, report=report(3), cost=None)]
    decision = Budget(cost=5)(rounds)
    assert not decision.stop
    assert decision.reason == "1 of 5 dollars used (1 round of unknown price not counted)"


def test_kl_budget() -> None:
    assert not KlBudget(nats=60)(history(20, 40)).stop
    decision = KlBudget(nats=60)(history(20, 40, kl_sequence=Estimate(61.0, 50.0, 72.0)))
    assert decision.stop
    assert decision.reason == "KL from the start 61 nats a sequence, over the budget of 60"
    assert not KlBudget(nats=60)(history(20, 40, kl_sequence=None)).stop
    assert not KlBudget(nats=60)(history(20, 40, kl_sequence=Estimate(NAN, NAN, NAN))).stop


def test_label_starvation() -> None:
    def with_preferences(n: int) -> list[RoundEvidence]:
        return [*history(20), RoundEvidence(round=1, report=report(20), preferences=n)]

    decision = LabelStarvation(minimum=8)(with_preferences(7))
    assert decision.stop
    assert decision.reason == "7 preferences, fewer than 8 are needed"
    assert not LabelStarvation(minimum=8)(with_preferences(8)).stop
    assert not LabelStarvation()(history(20)).stop


def starved(**found: Any) -> list[RoundEvidence]:
    return [*history(20), RoundEvidence(round=1, report=report(20), **found)]


def test_label_starvation_counts_what_the_training_reads() -> None:
    """KTO has labels where it has no pairs; a policy that answers itself needs neither."""
    assert not LabelStarvation()(starved(trained_on="labels", labels=40)).stop
    decision = LabelStarvation()(starved(trained_on="labels", labels=3, preferences=99))
    assert decision.reason == "3 labels, fewer than 8 are needed"
    assert LabelStarvation()(starved(trained_on="preferences", labels=99)).stop
    assert not LabelStarvation()(starved(trained_on="prompts")).stop
    assert LabelStarvation()(starved(trained_on="labels", labels=40, rows=2)).stop  # after the filters of the training
    lost = LabelStarvation()(starved(lost={"tie": 30, "failed": 4, "margin": 50, "near": 1}))
    assert lost.reason.endswith("; lost to margin (50), tie (30), failed (4)")
