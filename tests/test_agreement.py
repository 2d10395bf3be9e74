"""What judges are worth, on rows made by hand."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator

import pytest
from judged import both, candidate_of, pairwise, pointwise, prompt_of

from factory.agreement import between
from factory.judges.canaries import stand_in_key


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_a_judge_that_always_takes_the_first() -> None:
    prompt = prompt_of()
    candidates = [candidate_of(key, "x" * n, prompt=prompt) for n, key in enumerate("abcd", start=1)]
    pairs = [("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")]
    judgments = [row for a, b in pairs for row in both("first", a, b, 0.9, 0.1)]
    (stats,) = between(judgments, candidates).judges
    assert (stats.judgments, stats.verdicts, stats.failures) == (8, 4, 0)
    assert stats.first_position.value == 1.0
    assert stats.flip_rate.value == 1.0
    assert stats.tie_rate.value == 1.0
    assert math.isnan(stats.longer_wins.value)


def test_length_bias_failures_and_mass() -> None:
    prompt = prompt_of()
    candidates = [candidate_of("a", "long answer", prompt=prompt), candidate_of("b", "short", prompt=prompt)]
    candidates += [candidate_of("c", "s", prompt=prompt)]
    judgments = both("j", "a", "b", 0.8, 0.7) + both("j", "b", "c", 0.2, 0.3) + both("j", "a", "c", None, 0.9)
    stats = between(judgments, candidates).judges[0]
    assert stats.longer_wins.value == 0.5
    assert stats.failure_rate.value == pytest.approx(1 / 6)
    assert stats.verdicts == 2
    assert stats.flip_rate.value == 0.0


def test_two_judges_on_the_pairs_that_both_judged() -> None:
    prompt = prompt_of()
    candidates = [candidate_of(key, prompt=prompt) for key in "abc"]
    scores = [pointwise("verifier", "a", 1.0), pointwise("verifier", "b", 0.5), pointwise("verifier", "c", 0.5)]
    judgments = scores + both("llm", "a", "b", 0.9, 0.9) + both("llm", "b", "c", 0.1, 0.1)
    report = between(judgments, candidates)
    (pair,) = report.pairs
    assert (pair.judge, pair.other, pair.pairs) == ("llm", "verifier", 2)
    assert pair.percent.value == 0.5  # both say a on the first pair; the verifier ties the second
    assert (pair.decided, pair.same_winner.value) == (1, 1.0)
    assert report.to_json()["pairs"][0]["percent"][0] == 0.5
    assert [row["judge"] for row in report.judge_rows()] == ["llm", "verifier"]
    assert report.judges[1].mean_score.value == pytest.approx(2 / 3)


@pytest.mark.parametrize(("prompts", "trials"), [(("p1", "p2", "p3"), 3), (("p1", "p1", "p1"), 1)])
def test_full_agreement_on_few_prompts_is_not_certainty(prompts: tuple[str, ...], trials: int) -> None:
    """Three of three: Wilson's interval reaches down to n / (n + 1.96^2), 43.9% for three prompts. Three pairs of one
    prompt may all be alike: they are one trial."""
    pairs = [("a", "b"), ("c", "d"), ("e", "f")]
    judgments = [
        row
        for judge in ("x", "y")
        for pair, prompt in zip(pairs, prompts, strict=True)
        for row in both(judge, *pair, 0.9, 0.9, prompt_key=prompt)
    ]
    (found,) = between(judgments, []).pairs
    assert found.percent == (1.0, pytest.approx(trials / (trials + 1.959964**2), abs=1e-6), 1.0)


def test_judges_without_a_common_pair() -> None:
    candidates = [candidate_of(key) for key in "abc"]
    (pair,) = between(both("x", "a", "b", 0.9, 0.9) + both("y", "b", "c", 0.9, 0.9), candidates).pairs
    assert pair.pairs == 0
    assert math.isnan(pair.cohen_kappa.value)


def test_canaries_count_apart() -> None:
    candidates = [candidate_of("a"), candidate_of("b")]
    key = stand_in_key("empty", "b")
    shown = [pairwise("j", "a", key, p, order, canary="empty") for p, order in ((0.2, "a"), (0.3, "b"))]
    alone = pointwise("r", stand_in_key("colon", "a"), 0.9, canary="colon")
    report = between([*shown, *both("j", "a", "b", 0.9, 0.8), pointwise("r", "a", 0.5), alone], candidates)
    stats = {s.judge: s for s in report.judges}
    assert (stats["j"].judgments, stats["j"].verdicts, stats["j"].canaries) == (2, 1, 1)
    assert stats["j"].fooled_rate.value == 1.0
    assert (stats["r"].canaries, stats["r"].fooled_rate.value) == (1, 1.0)
    assert stats["r"].mean_score.value == 0.5
