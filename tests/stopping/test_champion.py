"""The champion: the best policy that no rule bars, of equals the earlier."""

from __future__ import annotations

from rounds_so_far import SURE_GAIN, history, report

from factory.schema import Estimate
from factory.stopping import All, KlBudget, MaxRounds, NoGain, RoundEvidence, StopConfig, champion, decide, flagged


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
