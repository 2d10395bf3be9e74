"""No gain: when a gain worth having is ruled out, when patience is out, and when the line is flat."""

from __future__ import annotations

import json

import pytest
from rounds_so_far import NAN, history, report

from factory.schema import Estimate
from factory.stopping import NoGain, RoundEvidence


def test_no_gain_goes_on_while_zero_is_only_a_lack_of_data() -> None:
    """58 after 60 of 200: the interval of the gain holds zero, and gains of several points too."""
    decision = NoGain(patience=2)(history(20, 60, 58))
    assert not decision.stop
    assert decision.evidence["champion_round"] == 1
    assert decision.evidence["rounds_without_gain"] == 1
    assert decision.evidence["gain_low"] < 0 < decision.evidence["gain_high"]


def test_no_gain_when_the_upper_bound_is_below_the_worthwhile() -> None:
    paired = RoundEvidence(round=2, report=report(58), gain=Estimate(-0.01, -0.02, 0.0))
    decision = NoGain(worthwhile_gain=0.02, patience=9)([*history(20, 60), paired])
    assert decision.stop
    assert "even the upper bound of the gain" in decision.reason
    assert 0.0 < decision.evidence["gain_high"] < 0.02  # widened for the second look
    assert not NoGain(worthwhile_gain=0.001, patience=9)([*history(20, 60), paired]).stop


def test_a_round_that_trained_nothing_rules_no_gain_out() -> None:
    """Its gain is exactly zero, which says nothing of a policy that is trained; patience counts it."""
    none = Estimate(0.0, 0.0, 0.0)
    rounds = [*history(20, 60), RoundEvidence(round=2, report=report(60, policy="round 1"), gain=none)]
    assert not NoGain(patience=2)(rounds).stop
    assert NoGain(patience=1)(rounds).stop
    assert NoGain(patience=2)([*rounds[:2], RoundEvidence(round=2, report=report(60), gain=none)]).stop


def test_no_gain_against_the_start_uses_the_paired_gain_of_the_report() -> None:
    decision = NoGain(worthwhile_gain=0.02, patience=9)(history(60, 61, gain=Estimate(0.005, -0.001, 0.011)))
    assert decision.stop
    assert decision.evidence["gain"] == 0.005


def test_no_gain_runs_out_of_patience() -> None:
    assert not NoGain(patience=2)(history(20, 60, 58)).stop
    decision = NoGain(patience=2)(history(20, 60, 58, 59))
    assert decision.stop
    assert "2 rounds without a better policy" in decision.reason
    assert not NoGain(patience=2)(history(20, 60, 58, 64)).stop


def test_no_gain_counts_an_equal_rate_as_none() -> None:
    assert NoGain(patience=1)(history(20, 60, 60)).stop


def test_no_gain_without_measures() -> None:
    assert not NoGain()(history(20)).stop
    assert not NoGain(patience=1)(history(20, None)).stop
    unmeasured = RoundEvidence(round=1, report=report(30, gain=Estimate(NAN, NAN, NAN)), gain=Estimate(NAN, NAN, NAN))
    assert NoGain()([*history(20), unmeasured]).evidence["gain"] == pytest.approx(0.05)  # from the two rates
    no_bounds = RoundEvidence(round=1, report=report(30), gain=Estimate(0.05, NAN, NAN))
    decision = NoGain(patience=1)([*history(20), no_bounds])
    assert not decision.stop
    assert decision.evidence["gain_high"] is None
    json.dumps(decision.evidence, allow_nan=False)


def test_no_gain_sees_a_plateau_through_lucky_rounds() -> None:
    """Equal policies, each a little luckier than the last champion: patience alone would go on for ever."""
    lucky = history(20, 60, 59, 61, 60, 62)  # the line through the last five rises by 0.25 points a round
    decision = NoGain()(lucky)
    assert decision.stop
    assert decision.evidence["rise_a_round"] == pytest.approx(0.0025)
    assert "over 4 rounds the line rises by +0.25 points a round, progress is more than +0.40" in decision.reason
    assert not NoGain(step=0.002)(lucky).stop
    assert not NoGain()(history(20, 60, 62, 64, 66, 68)).stop


def test_the_line_needs_all_rounds_of_its_window() -> None:
    assert NoGain(patience=3)(history(60, 61, 60)).evidence["rise_a_round"] is None
    unmeasured = history(60, None, 61, 60)
    assert NoGain(patience=3)(unmeasured).evidence["rise_a_round"] is None
