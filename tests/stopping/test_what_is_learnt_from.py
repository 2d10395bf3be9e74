"""What a policy is trained on is worth nothing any more: judges that contradict themselves, pairs that are learnt."""

from __future__ import annotations

from typing import Any

from rounds_so_far import history, report

from factory.schema import Estimate
from factory.stopping import JudgeAgreement, MarginSaturation, RoundEvidence


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
