"""Rules on made-up histories: each fires where it should, and not where it should not."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from pydantic import ValidationError

from factory import intervals
from factory.schema import Estimate, PolicyReport
from factory.stopping import (
    All,
    Budget,
    KlBudget,
    LabelStarvation,
    MaxRounds,
    NoGain,
    RewardHacking,
    RoundEvidence,
    Rule,
    StopConfig,
    champion,
    decide,
    flagged,
    rules,
)

NAN = math.nan
PROMPTS = 200


def report(passes: int | None, **measures: Any) -> PolicyReport:
    """A held-out report: so many of 200 prompts passed; length, relevance and distinct-2 as at the start."""
    values = {
        "relevance": Estimate(1.0, 0.95, 1.05),
        "tokens": Estimate(60.0, 57.0, 63.0),
        "distinct_2": 0.8,
        "kl_sequence": Estimate(5.0, 4.0, 6.0),
    }
    rate = None if passes is None else intervals.wilson(passes, PROMPTS)
    return PolicyReport("policy", "heldout", PROMPTS, PROMPTS, 0, pass_rate=rate, **{**values, **measures})


def history(*passes: int | None, **last: Any) -> list[RoundEvidence]:
    """Rounds with these pass counts; `last` goes to the last round's report."""
    rounds = [
        RoundEvidence(round=i, report=report(p), preferences=40 * (i > 0), seconds=100.0, tokens=1000, cost=0.5)
        for i, p in enumerate(passes)
    ]
    if last:
        end = rounds[-1]
        rounds[-1] = RoundEvidence(round=end.round, report=report(passes[-1], **last), preferences=40)
    return rounds


# --------------------------------------------------------------------------------------------------------- one by one


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


def test_no_gain_against_the_start_uses_the_paired_gain_of_the_report() -> None:
    decision = NoGain(patience=9)(history(60, 61, gain=Estimate(0.005, -0.001, 0.011)))
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


def test_kl_budget() -> None:
    assert not KlBudget(nats=60)(history(20, 40)).stop
    decision = KlBudget(nats=60)(history(20, 40, kl_sequence=Estimate(61.0, 50.0, 72.0)))
    assert decision.stop
    assert decision.reason == "KL from the start 61 nats a sequence, over the budget of 60"
    assert not KlBudget(nats=60)(history(20, 40, kl_sequence=None)).stop
    assert not KlBudget(nats=60)(history(20, 40, kl_sequence=Estimate(NAN, NAN, NAN))).stop


SURE_GAIN = Estimate(0.2, 0.12, 0.28)


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


def test_label_starvation() -> None:
    def with_preferences(n: int) -> list[RoundEvidence]:
        return [*history(20), RoundEvidence(round=1, report=report(20), preferences=n)]

    decision = LabelStarvation(minimum=8)(with_preferences(7))
    assert decision.stop
    assert decision.reason == "7 preferences, fewer than 8 are needed"
    assert not LabelStarvation(minimum=8)(with_preferences(8)).stop
    assert not LabelStarvation()(history(20)).stop


# ------------------------------------------------------------------------------------------------------- composition


def test_any_stops_at_the_first_and_names_those_that_agree() -> None:
    config = StopConfig(max_rounds=1, any=(KlBudget(nats=1), NoGain()))
    decision = decide(history(20, 60), config)
    assert decision.stop
    assert decision.rule == "kl_budget"
    assert decision.evidence["also"] == {"max_rounds": "1 of at most 1 round done"}


def test_going_on_tells_what_every_rule_saw() -> None:
    decision = decide(history(20, 60), StopConfig(max_rounds=5))
    assert not decision.stop
    assert decision.rule == ""
    assert set(decision.evidence) == {rule.rule for rule in StopConfig().leaves()} | {"max_rounds"}
    assert "1 of at most 5 rounds done" in decision.reason
    json.dumps(dict(decision.evidence), allow_nan=False)


def test_all_stops_only_together() -> None:
    both = All(all=(KlBudget(nats=1), NoGain(patience=2)))
    assert not decide(history(20, 60), StopConfig(max_rounds=9, any=(both,))).stop
    decision = decide(history(20, 60, 58), StopConfig(max_rounds=9, any=(both,)))
    # KL alone bars every trained policy, so that the start stays champion and no round bettered it
    assert decision.stop
    assert decision.rule == "kl_budget and no_gain"
    assert set(decision.evidence) == {"kl_budget", "no_gain"}


def test_every_rule_is_registered_under_its_name_and_serialises() -> None:
    assert rules.names() == [
        "budget", "degeneration", "diversity_collapse", "judge_agreement", "kl_budget", "label_starvation",
        "length_drift", "margin_saturation", "max_rounds", "no_gain", "reward_hacking",
    ]  # fmt: skip
    for name in rules.names():
        assert rules.get(name).model_fields["rule"].default == name
        assert issubclass(rules.get(name), Rule)


def test_config_reads_what_it_writes() -> None:
    given = {
        "max_rounds": 3,
        "any": [
            {"rule": "kl_budget", "nats": "4e1"},  # PyYAML reads 4e1 as text
            {"all": [{"rule": "no_gain"}, {"rule": "budget", "seconds": 60}]},
        ],
    }
    config = StopConfig.model_validate(given)
    assert config.any[0] == KlBudget(nats=40.0)
    assert [rule.rule for rule in config.leaves()] == ["kl_budget", "no_gain", "budget"]
    assert StopConfig.model_validate(json.loads(json.dumps(config.model_dump(mode="json")))) == config
    assert StopConfig.model_validate(StopConfig().model_dump(mode="json")) == StopConfig()


def test_config_names_every_fault_with_its_key() -> None:
    with pytest.raises(ValidationError) as caught:
        StopConfig.model_validate(
            {
                "max_rounds": True,
                "any": [
                    {"rule": "kl_budgt"},
                    {"rule": "no_gain", "patience": 0, "x": 1},
                    {"all": []},
                    {"rule": "budget"},
                    3,
                    {"all": [{"rule": "kl_budget", "nats": -1}]},
                ],
            }
        )
    faults = {".".join(map(str, fault["loc"])): fault["msg"] for fault in caught.value.errors()}
    assert "yes/no" in faults["max_rounds"]
    assert "did you mean 'kl_budget'?" in faults["any.0"]
    assert "greater than or equal to 1" in faults["any.1.patience"]
    assert "Extra inputs" in faults["any.1.x"]
    assert "at least 1 item" in faults["any.2.all"]
    assert "at least one of seconds, tokens, cost" in faults["any.3"]
    assert "a rule is a mapping" in faults["any.4"]
    assert "greater than 0" in faults["any.5.all.0.nats"]


def test_min_preferences_is_the_starvation_rules() -> None:
    assert StopConfig().min_preferences == LabelStarvation().minimum
    assert StopConfig(any=(LabelStarvation(minimum=30),)).min_preferences == 30
    assert StopConfig(any=()).min_preferences == 1


# ---------------------------------------------------------------------------------------------------------- champion


def test_champion_is_the_best_and_ties_go_to_the_earlier() -> None:
    assert champion(history(20)) == 0
    assert champion(history(20, 60, 60, 50)) == 1
    assert champion(history(60, 20)) == 0
    assert champion(history(None, None)) == 0
    assert champion(history(None, 1)) == 1


def test_a_barred_policy_is_never_champion() -> None:
    config = StopConfig()
    hacker = history(20, 60, 90, gain=SURE_GAIN, tokens=Estimate(9.0, 8.0, 10.0))
    assert champion(hacker) == 2
    assert champion(hacker, config) == 1
    assert [e.flags for e in flagged(hacker, config)] == [(), (), ("reward_hacking", "length_drift")]
    far = history(20, 60, kl_sequence=Estimate(99.0, 90.0, 110.0))
    assert champion(far, config) == 0
    assert champion(far, StopConfig(any=())) == 1
    within_all = StopConfig(any=(All(all=(KlBudget(), NoGain())),))
    assert champion(far, within_all) == 0


def test_patience_counts_from_the_champion_that_is_not_barred() -> None:
    """Round 2 has the best rate but is over the KL budget: at round 3 two rounds have passed since round 1."""
    rounds = history(20, 60, 70, 55)
    rounds[2] = RoundEvidence(round=2, report=report(70, kl_sequence=Estimate(99.0, 90.0, 110.0)), preferences=40)
    decision = decide(
        rounds, StopConfig(max_rounds=9, any=(NoGain(patience=2), All(all=(KlBudget(), MaxRounds(rounds=9)))))
    )
    assert decision.rule == "no_gain"
    assert decision.evidence["champion_round"] == 1


# ---------------------------------------------------------------------------------------------------------- from JSON


def test_evidence_comes_from_a_round_report() -> None:
    kept = {
        "round": 1,
        "report": report(40).to_json(),
        "gain_champion": [0.1, None, None],
        "pairs": {"preferences": 51},
        "seconds": 12.5,
        "tokens": 900,
        "cost": None,
    }
    evidence = RoundEvidence.from_json(json.loads(json.dumps(kept)))
    assert (evidence.round, evidence.preferences, evidence.seconds, evidence.tokens) == (1, 51, 12.5, 900)
    assert evidence.cost is None
    assert evidence.report.pass_rate is not None
    assert evidence.report.pass_rate.value == 0.2
    assert evidence.gain is not None
    assert evidence.gain.value == 0.1
    assert math.isnan(evidence.gain.low)
    start = RoundEvidence.from_json({"round": 0, "report": report(20).to_json(), "pairs": None})
    assert (start.preferences, start.gain) == (0, None)
