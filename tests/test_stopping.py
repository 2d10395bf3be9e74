"""Rules on made-up histories: each fires where it should, and not where it should not."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
from pydantic import ValidationError

from factory.schema import Estimate, Judged, PolicyReport
from factory.stats import intervals
from factory.stopping import (
    All,
    Budget,
    Degeneration,
    DiversityCollapse,
    JudgeAgreement,
    KlBudget,
    LabelStarvation,
    LengthDrift,
    MarginSaturation,
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


# -------------------------------------------------------------------------------------------------------- the trend


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


# ------------------------------------------------------------------------------------------- a judge instead of tests


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


# ------------------------------------------------------------------------------------------------------------- drift


def longer(*tokens: float, passes: tuple[int, ...] = (60, 60, 60)) -> list[RoundEvidence]:
    lengths = [Estimate(t, 0.97 * t, 1.03 * t) for t in tokens]
    return [
        RoundEvidence(round=i, report=report(p, tokens=t), preferences=40)
        for i, (p, t) in enumerate(zip(passes, lengths, strict=False))
    ]


def test_length_drift_is_what_quality_does_not_pay_for() -> None:
    decision = LengthDrift(since_champion=1.5)(longer(60, 100))
    assert decision.stop
    assert decision.reason.endswith("beyond 1.5 without a sure gain")
    assert not LengthDrift(since_champion=1.5)(longer(60, 100, passes=(20, 120))).stop
    assert LengthDrift(since_champion=1.5)(longer(60, 35)).stop  # much shorter is drift, too
    assert not LengthDrift(since_champion=1.5)(longer(60, 92)).stop  # 1.53 times, but it may be less
    assert LengthDrift()(longer(60, 250, passes=(20, 120))).stop  # beyond all that may be paid for
    assert LengthDrift()(longer(60, 250)).evidence["of_start"][0] == pytest.approx(250 / 60)


def test_length_drift_without_a_length() -> None:
    assert LengthDrift()(history(20, 40, tokens=None)).reason == "length was not measured"
    assert LengthDrift()(history(20)).reason == "no length to compare yet"
    assert not LengthDrift()(longer(60, 0)).stop


def test_diversity_collapse_reads_every_measure_that_there_is() -> None:
    rule = DiversityCollapse(since_champion=0.25, in_all=0.45)
    assert rule(history(60, 60, distinct_2=0.5)).stop  # 0.8 before: 37% lost, nothing gained
    assert not rule(history(20, 120, distinct_2=0.5)).stop
    assert rule(history(20, 120, distinct_2=0.4)).stop  # half is gone, whatever was gained
    assert not rule(history(60, 60, distinct_2=0.7)).stop
    assert rule(history(20, 40, distinct_2=None)).reason == "variety was not measured"
    same = [RoundEvidence(round=i, report=report(60, self_bleu=b)) for i, b in enumerate((0.2, 0.7))]
    decision = rule(same)
    assert decision.stop
    assert decision.evidence["lost_in_all"]["self_bleu"] == pytest.approx(0.625)
    flat = [RoundEvidence(round=i, report=report(60, entropy=Estimate(e, e, e))) for i, e in enumerate((1.0, 0.6))]
    assert not rule(flat).stop  # 40% of entropy is as 23% of distinct pairs


def test_degeneration_is_a_sure_growth_of_broken_answers_or_refusals() -> None:
    def broken(share: Estimate, name: str = "degenerate") -> list[RoundEvidence]:
        start = report(20, broken={"degenerate": Estimate(0.02, 0.0, 0.04), "refuse": Estimate(0.0, 0.0, 0.02)})
        last = report(20, broken={name: share})
        return [RoundEvidence(round=0, report=start), RoundEvidence(round=1, report=last)]

    decision = Degeneration()(broken(Estimate(0.2, 0.15, 0.25)))
    assert decision.stop
    assert decision.evidence["over"] == ["degenerate"]
    assert "broken answers +18.0 points: surely more than +5.0 points" in decision.reason
    assert not Degeneration()(broken(Estimate(0.12, 0.02, 0.22))).stop
    assert Degeneration()(broken(Estimate(0.4, 0.3, 0.5), "refuse")).evidence["over"] == ["refuse"]
    assert Degeneration()(history(20, 40)).reason == "broken answers were not counted"


# --------------------------------------------------------------------------------------------- what is learnt from


def believed(**found: Any) -> list[RoundEvidence]:
    return [*history(20), RoundEvidence(round=1, report=report(20), **found)]


def test_judge_agreement_by_flips_of_the_judge_that_flips_least() -> None:
    wild, calm = Estimate(0.8, 0.7, 0.9), Estimate(0.3, 0.2, 0.4)
    decision = JudgeAgreement()(believed(flips={"pairwise": wild}))
    assert decision.stop
    assert "surely more than 60% of the verdicts change with the order" in decision.reason
    assert not JudgeAgreement()(believed(flips={"pairwise": wild, "other": calm})).stop
    assert JudgeAgreement(judge="pairwise")(believed(flips={"pairwise": wild, "other": calm})).stop
    assert not JudgeAgreement()(believed(flips={"pairwise": Estimate(0.7, 0.5, 0.9)})).stop
    assert "not measured" in JudgeAgreement()(believed()).reason


def test_judge_agreement_by_effective_judges_and_by_people() -> None:
    assert JudgeAgreement(effective=2)(believed(effective=1.3)).stop
    assert not JudgeAgreement(effective=2)(believed(effective=2.5)).stop
    assert not JudgeAgreement(effective=2)(believed()).stop
    few, many = Estimate(0.75, 0.45, 0.92), Estimate(0.75, 0.68, 0.81)
    assert JudgeAgreement(human=0.6)(believed(human={"pairwise": few})).stop
    assert not JudgeAgreement(human=0.6)(believed(human={"pairwise": many})).stop
    assert JudgeAgreement(flips=None)(believed()).reason == "no limit is set"


def test_margin_saturation_is_lasting_and_asks_the_held_out_pairs() -> None:
    def told_apart(*rounds: tuple[float | None, float | None]) -> list[RoundEvidence]:
        found = [RoundEvidence(round=0, report=report(20, implicit={"accuracy": Estimate(0.5, 0.45, 0.55)}))]
        for i, (training, heldout) in enumerate(rounds, 1):
            held = {} if heldout is None else {"accuracy": Estimate(heldout, heldout - 0.03, heldout + 0.03)}
            found.append(RoundEvidence(round=i, report=report(20, implicit=held), accuracy=training, margin=2.0))
        return found

    rule = MarginSaturation()
    assert not rule(told_apart((0.99, 0.52))).stop
    decision = rule(told_apart((0.99, 0.52), (1.0, 0.53)))
    assert decision.stop
    assert decision.evidence["rounds_in_a_row"] == 2
    assert "2 rounds in a row of the 2 that it takes" in decision.reason
    assert not rule(told_apart((0.99, 0.52), (1.0, 0.62))).stop  # held-out pairs are still being learnt
    assert rule(told_apart((0.99, None), (1.0, None))).stop
    assert not rule(told_apart((0.8, 0.52), (1.0, 0.53))).stop
    assert rule(told_apart((None, None))).reason == "the accuracy of training pairs was not measured"


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


def test_evidence_of_judges_training_and_rows() -> None:
    kept = {
        "round": 1,
        "report": report(40).to_json(),
        "trained_on": {"table": "labels", "rows": 12},
        "pairs": {"preferences": 0, "labels": 14, "dropped": {"tie": 3}, "labels_dropped": {"middle": 5}},
        "training": {"last": {"rewards/margins": 1.5, "rewards/accuracies": 0.9}},
        "agreement": {
            "judges": [
                {"judge": "verifier", "flip_rate": [None, None, None]},
                {"judge": "pairwise", "flip_rate": [0.4, 0.3, 0.5]},
            ],
            "pairs": [
                {"judge": "human", "other": "pairwise", "same_winner": [0.7, 0.6, 0.8]},
                {"judge": "pairwise", "other": "verifier", "same_winner": [0.9, 0.8, 1.0]},
            ],
            "panel": {"effective": 1.8},
        },
    }
    evidence = RoundEvidence.from_json(json.loads(json.dumps(kept)))
    assert (evidence.trained_on, evidence.rows, evidence.labels, evidence.lost) == ("labels", 12, 14, {"middle": 5})
    assert (evidence.margin, evidence.accuracy, evidence.effective) == (1.5, 0.9, 1.8)
    assert evidence.flips == {"pairwise": Estimate(0.4, 0.3, 0.5)}
    assert evidence.human == {"pairwise": Estimate(0.7, 0.6, 0.8)}


# ----------------------------------------------------------------------------------------------- lasting and nesting


def test_a_lasting_rule_stops_late_and_bars_at_once() -> None:
    far = Estimate(99.0, 90.0, 110.0)
    rounds = history(20, 60, 70)
    rounds[1:] = [dataclasses.replace(e, report=dataclasses.replace(e.report, kl_sequence=far)) for e in rounds[1:]]
    config = StopConfig(max_rounds=9, any=(KlBudget(lasting=2),))
    assert not decide(rounds[:2], config).stop
    assert champion(rounds[:2], config) == 0
    decision = decide(rounds, config)
    assert decision.stop
    assert decision.reason.endswith("2 rounds in a row of the 2 that it takes")


def test_any_within_all() -> None:
    config = StopConfig.model_validate(
        {"max_rounds": 9, "any": [{"all": [{"rule": "no_gain", "patience": 1}, {"any": [
            {"rule": "kl_budget", "nats": 1}, {"rule": "label_starvation"}]}]}]}
    )  # fmt: skip
    assert [rule.rule for rule in config.leaves()] == ["no_gain", "kl_budget", "label_starvation"]
    assert StopConfig.model_validate(json.loads(json.dumps(config.model_dump(mode="json")))) == config
    decision = decide(history(60, 50), config)
    assert decision.stop
    assert decision.rule == "no_gain and kl_budget"
    assert not decide(
        history(60, 50), config.model_copy(update={"any": (All(all=(NoGain(patience=1), KlBudget())),)})
    ).stop
