"""Reward hacking: the pass rate surely rises, and relevance, length or variety surely falls."""

from __future__ import annotations

import json
from typing import Any

import pytest
from rounds_so_far import NAN, SURE_GAIN, history, report

from factory.schema import Estimate
from factory.stopping import RewardHacking, RoundEvidence


@pytest.mark.parametrize(
    ("measure", "fallen"),
    [
        ({"relevance": Estimate(0.5, 0.45, 0.55)}, ["relevance"]),
        ({"tokens": Estimate(20.0, 18.0, 22.0)}, ["tokens"]),
        ({"distinct_2": 0.5}, ["distinct_2"]),
    ],
)
def test_reward_hacking_is_a_rising_pass_rate_with_a_falling_measure(measure: Any, fallen: list[str]) -> None:
    decision = RewardHacking()(history(20, 60, gain=SURE_GAIN, **measure))
    assert decision.stop
    assert decision.evidence["fallen"] == fallen
    assert "pass rate +20.0 points since the start" in decision.reason
    assert not RewardHacking(measures=2)(history(20, 60, gain=SURE_GAIN, **measure)).stop


def test_a_fall_without_a_rise_is_no_hacking() -> None:
    unsure = Estimate(0.02, -0.04, 0.08)
    assert not RewardHacking()(history(20, 24, gain=unsure, tokens=Estimate(10.0, 9.0, 11.0))).stop


@pytest.mark.parametrize(
    "measure",
    [
        {"relevance": Estimate(0.70, 0.68, 0.72)},  # less than its share is gone
        {"relevance": Estimate(0.60, 0.40, 0.80)},  # more than its share, but the interval is wide
        {"relevance": None},
        {"relevance": Estimate(NAN, NAN, NAN)},
        {"tokens": Estimate(20.0, NAN, NAN)},
        {"distinct_2": None},
        {"distinct_2": 0.57},
        {"tokens": Estimate(200.0, 190.0, 210.0)},  # growth is another rule's
    ],
)
def test_reward_hacking_needs_a_sure_fall(measure: Any) -> None:
    decision = RewardHacking()(history(20, 60, gain=SURE_GAIN, **measure))
    assert not decision.stop
    json.dumps(decision.evidence, allow_nan=False)


def test_reward_hacking_without_a_paired_gain_or_without_a_start() -> None:
    assert RewardHacking()(history(20, 60, tokens=Estimate(10.0, 9.0, 11.0))).stop  # 30% against 10%, unpaired
    assert not RewardHacking()(history(20, 22, tokens=Estimate(10.0, 9.0, 11.0))).stop
    assert not RewardHacking()(history(20)).stop
    worthless = [RoundEvidence(round=0, report=report(20, relevance=Estimate(-0.1, -0.2, 0.0))), *history(20, 60)[1:]]
    assert not RewardHacking()(worthless).stop  # nothing to lose
