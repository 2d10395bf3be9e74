"""Every rule on every history: whatever was measured or not, there is a word, and its numbers are JSON."""

from __future__ import annotations

import json
import math

from hypothesis import HealthCheck, given, settings, strategies as st

from factory.schema import Estimate, Judged, PolicyReport
from factory.stopping import RoundEvidence, StopConfig, champion, decide, decide_marked, flagged

BOUND = st.one_of(st.just(math.nan), st.floats(-2, 2))
MEASURED = st.builds(Estimate, BOUND, BOUND, BOUND)
VALUE = st.one_of(st.none(), MEASURED)
NUMBER = st.one_of(st.none(), st.floats(0, 1))
JUDGED = st.builds(
    Judged, judge=st.sampled_from("ab"), independent=st.sampled_from([True, False, None]), win_rate=VALUE,
    length_controlled=VALUE,
)  # fmt: skip
REPORT = st.builds(
    PolicyReport, policy=st.just("p"), split=st.just("heldout"), prompts=st.just(9), answers=st.just(9),
    failures=st.just(0), pass_rate=VALUE, gain=VALUE, win_rate=VALUE, tokens=VALUE, relevance=VALUE, entropy=VALUE,
    kl_sequence=VALUE, distinct_2=NUMBER, self_bleu=NUMBER, judged=st.lists(JUDGED, max_size=2).map(tuple),
    broken=st.dictionaries(st.sampled_from(["degenerate", "refuse"]), MEASURED, max_size=2),
    implicit=st.dictionaries(st.just("accuracy"), MEASURED, max_size=1),
)  # fmt: skip
CONFIG = StopConfig.model_validate(
    {
        "max_rounds": 9,
        "any": [
            *(rule.model_dump() for rule in StopConfig().leaves()),
            {"rule": "budget", "tokens": 10**9, "cost": 1e9},
            {"rule": "judge_agreement", "human": 0.6, "effective": 2},
            {"rule": "margin_saturation"},
            {"all": [{"rule": "no_gain", "patience": 1, "lasting": 2}, {"any": [{"rule": "kl_budget", "nats": 1}]}]},
        ],
    }
)


@st.composite
def histories(draw: st.DrawFn) -> list[RoundEvidence]:
    return [
        RoundEvidence(
            round=i,
            report=draw(REPORT),
            gain=draw(VALUE),
            preferences=draw(st.integers(0, 20)),
            trained_on=draw(st.sampled_from([None, "labels", "preferences", "prompts"])),
            rows=draw(st.one_of(st.none(), st.integers(0, 20))),
            flips={"a": draw(st.builds(Estimate, BOUND, BOUND, BOUND))},
            human={"a": draw(st.builds(Estimate, BOUND, BOUND, BOUND))},
            effective=draw(NUMBER),
            accuracy=draw(NUMBER),
            margin=draw(NUMBER),
            cost=draw(NUMBER),
        )
        for i in range(draw(st.integers(1, 5)))
    ]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(histories())
def test_every_history_has_a_decision_a_reason_and_a_champion(history: list[RoundEvidence]) -> None:
    decision = decide(history, CONFIG)
    assert decision.reason
    assert bool(decision.rule) == decision.stop
    json.dumps(dict(decision.evidence), allow_nan=False)
    best = champion(history, CONFIG)
    marked = flagged(history, CONFIG)
    assert best == 0 or not marked[best].flags
    assert decide_marked(marked, CONFIG) == decision


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(histories())
def test_what_a_round_is_barred_for_does_not_change_with_later_rounds(history: list[RoundEvidence]) -> None:
    whole = [evidence.flags for evidence in flagged(history, CONFIG)]
    for end in range(1, len(history) + 1):
        assert [evidence.flags for evidence in flagged(history[:end], CONFIG)] == whole[:end]
