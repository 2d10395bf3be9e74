"""Answers that drift: longer or shorter, more alike, broken or refused."""

from __future__ import annotations

import pytest
from rounds_so_far import history, report

from factory.schema import Estimate
from factory.stopping import Degeneration, DiversityCollapse, LengthDrift, RoundEvidence


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
