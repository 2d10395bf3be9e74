"""The alternative annotator test: the paper's quantities by hand, its t-test by scipy, and its errors by simulation."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy.stats import ttest_1samp
from statsmodels.stats.multitest import multipletests

from factory.trust.alternative_annotator import alternative, benjamini_yekutieli

People = dict[str, dict[Hashable, str]]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.01, 0.3))
def test_the_false_discovery_rate_is_statsmodels(p: list[float], q: float) -> None:
    assert benjamini_yekutieli(p, q) == multipletests(p, q, method="fdr_by")[0].tolist()


def noisy(rng: np.random.Generator, truth: list[str], accuracy: float) -> dict[Hashable, str]:
    right = rng.random(len(truth)) < accuracy
    return {i: t if ok else {"a": "b", "b": "a"}[t] for i, (t, ok) in enumerate(zip(truth, right, strict=True))}


def drawn(seed: int, items: int, judge: float, people: float) -> tuple[dict[Hashable, str], People]:
    rng = np.random.default_rng(seed)
    truth = ["a" if x else "b" for x in rng.random(items) < 0.5]
    return noisy(rng, truth, judge), {name: noisy(rng, truth, people) for name in ("x", "y", "z")}


def test_the_papers_quantities() -> None:
    said, people = drawn(0, 80, 0.9, 0.7)
    found = alternative("j", said, people, {i: i for i in range(80)}, epsilon=0.15)
    for result in found.people:
        others = [name for name in people if name != result.person]
        judge = [sum(said[i] == people[o][i] for o in others) for i in range(80)]
        human = [sum(people[result.person][i] == people[o][i] for o in others) for i in range(80)]
        ahead = [float(j >= h) for j, h in zip(judge, human, strict=True)]
        behind = [float(h >= j) for j, h in zip(judge, human, strict=True)]
        assert result.advantage == pytest.approx(np.mean(ahead))
        assert result.other == pytest.approx(np.mean(behind))
        oracle = ttest_1samp(np.subtract(behind, ahead), 0.15, alternative="less").pvalue
        assert result.p == pytest.approx(oracle, rel=1e-6)
    assert found.omega == 1.0
    assert found.passes
    assert found.advantage == pytest.approx(np.mean([result.advantage for result in found.people]))


def test_a_bad_judge_does_not_pass_and_a_borderline_one_seldom() -> None:
    assert alternative("j", *drawn(1, 100, 0.4, 0.9), {i: i for i in range(100)}).passes is False
    passed = sum(
        bool(alternative("j", *drawn(seed, 60, 0.62, 0.9), {i: i for i in range(60)}).passes) for seed in range(200)
    )
    assert passed / 200 <= 0.05  # its true disadvantage is above 0.2


def test_copies_within_prompts_are_no_evidence() -> None:
    said, people = drawn(2, 40, 0.8, 0.8)
    copied = {(i, k): word for i, word in said.items() for k in range(5)}
    crowd: People = {p: {(i, k): w for i, w in words.items() for k in range(5)} for p, words in people.items()}
    once = alternative("j", said, people, {i: i for i in range(40)})
    fivefold = alternative("j", dict(copied), crowd, {(i, k): i for i in range(40) for k in range(5)})
    for one, other in zip(once.people, fivefold.people, strict=True):
        assert other.p == pytest.approx(one.p)


def test_full_agreement_is_a_finite_surprise() -> None:
    same: dict[Hashable, str] = dict.fromkeys(range(30), "a")
    found = alternative("j", same, {name: dict(same) for name in "xyz"}, {i: i for i in range(30)})
    assert [result.p for result in found.people] == pytest.approx([0.8**30] * 3)
    assert found.passes


@pytest.mark.parametrize(("people", "items"), [(2, 80), (3, 29), (0, 0)])
def test_too_few_say_so(people: int, items: int) -> None:
    said, crowd = drawn(3, items, 0.9, 0.9)
    found = alternative("j", said, dict(list(crowd.items())[:people]), {i: i for i in range(items)})
    assert (found.passes, found.omega) == (None, None)
    assert "needs 3 people" in found.note
