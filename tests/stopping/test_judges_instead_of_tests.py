"""Rounds that judges measured: the one that did not label decides on gain, champion and reward hacking."""

from __future__ import annotations

import dataclasses
import json

import pytest
from rounds_so_far import history, report

from factory.schema import Estimate, Judged
from factory.stopping import NoGain, RewardHacking, RoundEvidence, StopConfig, champion


def judged(*win_rates: float, labelling: tuple[float, ...] = (), width: float = 0.03) -> list[RoundEvidence]:
    """Rounds that only judges measured: an independent one, and the one that labels."""

    def one(i: int) -> RoundEvidence:
        found = []
        if i and labelling:
            found.append(
                Judged("panel", False, Estimate(labelling[i - 1], labelling[i - 1] - 0.02, labelling[i - 1] + 0.02))
            )
        if i:
            rate = win_rates[i - 1]
            found.append(
                Judged("other", True, Estimate(rate + 0.2, 0.0, 1.0), Estimate(rate, rate - width, rate + width))
            )
        return RoundEvidence(round=i, report=report(None, judged=tuple(found)), preferences=40)

    return [one(i) for i in range(len(win_rates) + 1)]


def test_the_win_rate_at_equal_lengths_decides_where_nothing_is_verified() -> None:
    assert champion(judged(0.6, 0.7, 0.65)) == 2
    assert champion(judged(0.4, 0.45)) == 0  # the start has a half against itself
    decision = NoGain(patience=2)(judged(0.6, 0.58, 0.59))
    assert decision.stop
    assert decision.reason.startswith("held-out win rate by a judge that did not label 59.0%, round 1 had 60.0%")
    assert decision.evidence["win_rate"] == 0.59
    assert not NoGain(patience=2)(judged(0.6, 0.58, 0.7)).stop


def test_reward_hacking_is_a_labeller_up_and_an_independent_judge_down() -> None:
    hacked = judged(0.7, 0.55, labelling=(0.7, 0.85))
    decision = RewardHacking()(hacked)
    assert decision.stop
    assert "since round 1 the labelling judge says +15.0 points" in decision.reason
    assert decision.evidence["independent"][2] < 0
    assert champion(hacked, StopConfig()) == 1
    assert not RewardHacking(fall=0.2)(hacked).stop
    json.dumps(dict(decision.evidence), allow_nan=False)


@pytest.mark.parametrize(
    ("independent", "labelling"),
    [
        ((0.7, 0.55), (0.7, 0.71)),  # the labeller is no better pleased
        ((0.7, 0.69), (0.7, 0.85)),  # the other may be as pleased as before
        ((0.7, 0.8), (0.7, 0.85)),  # both are better pleased
    ],
)
def test_both_must_be_sure(independent: tuple[float, ...], labelling: tuple[float, ...]) -> None:
    assert not RewardHacking()(judged(*independent, labelling=labelling)).stop


def test_the_pass_rate_stands_in_for_an_independent_judge() -> None:
    rounds = history(20, 100, 60)
    for i, rate in ((1, 0.7), (2, 0.9)):
        seen = Judged("panel", False, Estimate(rate, rate - 0.02, rate + 0.02))
        kept = dataclasses.replace(rounds[i].report, judged=(seen,))
        rounds[i] = dataclasses.replace(rounds[i], report=kept, gain=Estimate(-0.2, -0.25, -0.15) if i == 2 else None)
    decision = RewardHacking()(rounds)
    assert decision.stop
    assert "the pass rate -20.0 points" in decision.reason
