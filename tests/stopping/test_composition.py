"""Rules together: any, all, nested, lasting; how a config of them is read, written and refused."""

from __future__ import annotations

import dataclasses
import json

import pytest
from pydantic import ValidationError
from rounds_so_far import history

from factory.schema import Estimate
from factory.stopping import All, KlBudget, LabelStarvation, NoGain, Rule, StopConfig, champion, decide, rules


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
