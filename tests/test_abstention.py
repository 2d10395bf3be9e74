"""Thresholds of confidence: the exact tail, and the guarantee on data with a known truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy import stats

from factory.faults import FactoryError
from factory.trust.abstention import at_most, calibrate, needed


@given(st.integers(0, 200), st.integers(0, 200), st.floats(0.01, 0.99))
def test_the_binomial_tail(wrong: int, n: int, risk: float) -> None:
    assert at_most(min(wrong, n), n, risk) == pytest.approx(stats.binom.cdf(min(wrong, n), n, risk), abs=1e-9)


def test_how_many_are_needed() -> None:
    """0.8^10 = 0.107 > 0.1 >= 0.8^11 = 0.086."""
    assert needed(0.2, 0.1) == 11
    ten, eleven = ([(0.9, False)] * n for n in (10, 11))
    assert calibrate("j", ten, [0.9] * 100).threshold is None
    assert "at least 11" in calibrate("j", ten, [0.9] * 100).note
    found = calibrate("j", eleven, [0.9] * 100)
    assert (found.threshold, found.above, found.wrong, found.kept.value) == (0.9, 11, 0, 1.0)


ERRORS: dict[str, Any] = {
    "calibrated": lambda c: 1 - c,
    "at the risk everywhere": lambda c: np.full(len(c), 0.2001),
    "better the surer": lambda c: np.clip(0.35 - 0.4 * (c - 0.5), 0, 1),
    "worse the surer": lambda c: np.clip(c - 0.5, 0, 1),
    "words": lambda c: np.where(c == 1, 0.21, 0.4),
}


@pytest.mark.parametrize("others", [400, 0])
@pytest.mark.parametrize("kind", list(ERRORS))
def test_the_guarantee_holds(kind: str, others: int) -> None:
    """Risk .2, delta .1: in at most 10% of 400 draws (3.5 standard errors of noise allowed) is the true share of wrong
    verdicts above the threshold more than .2."""

    def drawn(rng: np.random.Generator, n: int) -> Any:
        confidence = 0.5 + 0.5 * rng.beta(1.2, 1.5, n)
        return np.where(confidence > 0.75, 1.0, 0.75) if kind == "words" else confidence

    whole = drawn(np.random.default_rng(10**6), 50_000)
    errors = ERRORS[kind](whole)
    broken = found = 0
    for seed in range(400):
        rng = np.random.default_rng(seed)
        confidence = drawn(rng, 150)
        wrong = rng.random(150) < ERRORS[kind](confidence)
        limit = calibrate("j", list(zip(confidence.tolist(), wrong.tolist(), strict=True)), drawn(rng, others).tolist())
        if limit.threshold is not None:
            found += 1
            broken += errors[whole >= limit.threshold].mean() > 0.2
    assert broken / 400 <= 0.1 + 3.5 * (0.1 * 0.9 / 400) ** 0.5
    if kind == "calibrated" and others:
        assert found > 100  # and it is no empty promise


def test_few_others_take_thresholds_set_beforehand() -> None:
    gold = [(0.97, False)] * 60 + [(0.6, True)] * 30
    found = calibrate("j", gold, [])
    assert found.threshold is not None
    assert 0.6 < found.threshold <= 0.95
    assert found.kept.value == pytest.approx(60 / 90)


@pytest.mark.parametrize(("risk", "delta"), [(0.0, 0.1), (1.0, 0.1), (0.2, 0.0), (0.2, 1.2)])
def test_risk_and_delta_are_shares(risk: float, delta: float) -> None:
    with pytest.raises(FactoryError, match="between 0 and 1"):
        calibrate("j", [], [], risk=risk, delta=delta)


def test_no_gold() -> None:
    assert calibrate("j", [], [0.9] * 100).threshold is None
    assert calibrate("j", [], []).threshold is None


@pytest.mark.parametrize("others", [50, 97, 1000])
def test_any_number_of_gold_verdicts(others: int) -> None:
    """The last threshold of the sequence is the least confidence, also where shares of it are rounded."""
    confidences = [0.5 + n / (2 * others) for n in range(others)]
    for gold in range(0, 400, 7):
        found = calibrate("j", [(0.99, False)] * gold, confidences)
        assert found.threshold == (confidences[0] if gold >= 11 else None)
