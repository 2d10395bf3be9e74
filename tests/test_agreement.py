"""What judges are worth, on rows made by hand."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
from judged import both, candidate_of, pairwise, pointwise, prompt_of

from factory import verdicts
from factory.faults import FactoryError
from factory.judges.canaries import stand_in_key
from factory.schema import Candidate, Judgment
from factory.trust.agreement import JudgesReport, between, measure, of_evidence
from factory.trust.evidence import evidence


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


def test_a_tie_with_a_canary_fools_nobody_here_as_in_quarantine() -> None:
    """Six canaries: two preferred to the real answer, one not, three ties. Two of the three that were decided."""
    candidates = [candidate_of(key) for key in "abcdefg"]
    chances = dict(zip("bcdefg", (0.1, 0.2, 0.9, 0.5, 0.5, 0.5), strict=True))
    shown = [
        replace(pairwise("j", "a", stand_in_key("empty", key), p, order, canary="empty"), batch="one")
        for key, p in chances.items()
        for order in ("a", "b")
    ]
    rows = [*shown, *(replace(row, batch="one") for row in both("j", "a", "b", 0.9, 0.8))]
    [stats] = between(rows, candidates).judges
    [why] = verdicts.quarantined(rows).values()
    assert (stats.canaries, stats.canary_ties) == (6, 3)
    assert stats.fooled_rate.value == why.fooled / why.decided == 2 / 3


def random_verdicts(seed: int, prompts: int, each: int = 1) -> JudgesReport:
    return between(*_random_rows(seed, prompts, each))


def _random_rows(seed: int, prompts: int, each: int = 1) -> tuple[list[Judgment], list[Candidate]]:
    """Two judges of pairs that agree more often than not; `each` copies of every pair in its prompt."""
    rng = random.Random(seed)
    rows: list[Judgment] = []
    candidates = []
    for n in range(prompts):
        one = rng.choice([0.1, 0.5, 0.8])
        other = one if rng.random() < 0.6 else rng.choice([0.2, 0.5, 0.9])
        for copy in range(each):
            pair = (f"{n}.{copy}a", f"{n}.{copy}b")
            candidates += [replace(candidate_of(key), prompt_key=f"p{n}", model=key[-1]) for key in pair]
            for judge, p in (("x", one), ("y", other)):
                rows += both(judge, *pair, p, p, prompt_key=f"p{n}")
    return rows, candidates


@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval"])
def test_coefficients_are_those_of_measure(level: Any) -> None:
    rows, candidates = _random_rows(0, 80)
    found = evidence(rows, candidates)
    (pair,) = of_evidence(found, level=level).pairs
    words = {"b": 0.0, "tie": 0.5, "a": 1.0}
    said = [(item, judge, v) for judge, by in found.said.items() for item, v in by.items()]
    value = [v.p_a if level == "interval" else words[v.verdict] for _, _, v in said]
    table = pa.table({"item": ["/".join(i) for i, _, _ in said], "judge": [j for _, j, _ in said], "value": value})
    oracle = measure(table, level)
    assert pair.krippendorff_alpha.value == pytest.approx(oracle.krippendorff_alpha.value)
    assert pair.krippendorff_alpha[1:] == pytest.approx(oracle.krippendorff_alpha[1:], abs=0.05)
    assert pair.cohen_kappa.value == pytest.approx(oracle.cohen_kappa["x", "y"].value)
    if level == "nominal":
        assert pair.gwet_ac1.value == pytest.approx(oracle.gwet_ac1.value)
        assert pair.percent.value == pytest.approx(oracle.percent.value)


def test_pairs_of_one_prompt_are_one_piece_of_evidence() -> None:
    (once,), (tenfold,) = random_verdicts(1, 40).pairs, random_verdicts(1, 40, each=10).pairs
    assert tenfold.pairs == 10 * once.pairs
    for name in ("percent", "cohen_kappa", "gwet_ac1", "same_winner"):
        narrow, wide = getattr(once, name), getattr(tenfold, name)
        assert wide.value == pytest.approx(narrow.value, abs=1e-9)
        assert wide.high - wide.low == pytest.approx(narrow.high - narrow.low, rel=0.15)


def test_all_judges_together_and_the_ranking() -> None:
    rows, candidates = _random_rows(2, 60)
    rows += [replace(row, judge="z", key=row.key + "z") for row in rows if row.judge == "x"]  # x's echo
    report = between(rows, candidates)
    assert report.panel is not None
    assert (report.panel.judges, report.panel.pairs) == (3, 60)
    assert report.panel.effective is not None
    assert 1 <= report.panel.effective < 2.5
    assert set(report.ranking) == {"panel", "x", "y", "z"}
    assert report.ranking["panel"].models[0].wins == report.ranking["x"].models[0].wins  # x and its echo outvote y
    for head in ("Judges\n", "What wins", "Canaries and cost", "Two judges", "All judges", "Models"):
        assert head in report.text()


def test_an_unknown_level() -> None:
    with pytest.raises(FactoryError, match="did you mean 'ordinal'"):
        of_evidence(evidence([], []), level="ordnal")  # type: ignore[arg-type]


def test_nothing_judged_is_a_report_of_nothing() -> None:
    report = between([], [])
    assert (report.judges, report.pairs, report.panel, report.ranking) == ([], [], None, {})
    assert "(no rows)" in report.text()
