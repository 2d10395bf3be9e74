"""Coefficients against published examples and other implementations; what judges are worth, on rows made by hand."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import krippendorff
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings, strategies as st
from judged import both, candidate_of, pairwise, pointwise, prompt_of
from sklearn.metrics import cohen_kappa_score

from factory.aggregation import encode, likeliest
from factory.agreement import aggregate, between, measure
from factory.coefficients import draws_for
from factory.faults import FactoryError
from factory.judges.canaries import stand_in_key


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def votes(by_judge: Mapping[str, Sequence[Any]]) -> pa.Table:
    """One row for each judge and item; the position in the list is the item."""
    rows = [(item, judge, value) for judge, said in by_judge.items() for item, value in enumerate(said)]
    item, judge, value = zip(*rows, strict=True)
    return pa.table({"item": item, "judge": judge, "value": pa.array(value)})


def from_counts(counts: Sequence[Sequence[int]]) -> pa.Table:
    """Votes of nameless judges from how often each item got each category."""
    rows = []
    for item, row in enumerate(counts):
        said = [category for category, n in enumerate(row) for _ in range(n)]
        rows += [(item, f"j{place}", value) for place, value in enumerate(said)]
    item_, judge, value = zip(*rows, strict=True)
    return pa.table({"item": item_, "judge": judge, "value": value})


# --------------------------------------------------------------------------------------------------- worked examples

KRIPPENDORFF_2011 = {
    "A": [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
    "B": [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
    "C": [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
    "D": [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
}
"""Example C of "Computing Krippendorff's alpha-reliability": four observers, twelve units, missing data."""


@pytest.mark.parametrize(("level", "published"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_krippendorffs_own_example(level: Any, published: float) -> None:
    assert measure(votes(KRIPPENDORFF_2011), level).krippendorff_alpha.value == pytest.approx(published, abs=6e-4)


def test_gwets_ac1_and_percent_on_the_same_example() -> None:
    """Gwet's handbook takes the same twelve units: percent .8182, AC1 .7754, kappa after Fleiss .7612."""
    measured = measure(votes(KRIPPENDORFF_2011))
    assert measured.percent.value == pytest.approx(0.8182, abs=6e-5)
    assert measured.gwet_ac1.value == pytest.approx(0.7754, abs=6e-5)
    assert measured.fleiss_kappa.value == pytest.approx(0.7612, abs=6e-5)


FLEISS_1971 = [
    (0, 0, 0, 6, 0), (0, 3, 0, 0, 3), (0, 1, 4, 0, 1), (0, 0, 0, 0, 6), (0, 3, 0, 3, 0), (2, 0, 4, 0, 0),
    (0, 0, 4, 0, 2), (2, 0, 3, 1, 0), (2, 0, 0, 4, 0), (0, 0, 0, 0, 6), (1, 0, 0, 5, 0), (1, 1, 0, 4, 0),
    (0, 3, 3, 0, 0), (1, 0, 0, 5, 0), (0, 2, 0, 3, 1), (0, 0, 5, 0, 1), (3, 0, 0, 1, 2), (5, 1, 0, 0, 0),
    (0, 2, 0, 4, 0), (1, 0, 2, 0, 3), (0, 0, 0, 0, 6), (0, 1, 0, 5, 0), (0, 2, 0, 1, 3), (2, 0, 0, 4, 0),
    (1, 0, 0, 4, 1), (0, 5, 0, 1, 0), (4, 0, 0, 0, 2), (0, 2, 0, 4, 0), (1, 0, 5, 0, 0), (0, 0, 0, 0, 6),
]  # fmt: skip
"""Table 1 of Fleiss 1971: thirty patients, five diagnoses, six psychiatrists each."""


def test_fleiss_own_example() -> None:
    """The paper gives kappa .430; its mean agreement is .556."""
    measured = measure(from_counts(FLEISS_1971))
    assert measured.fleiss_kappa.value == pytest.approx(0.430, abs=6e-4)
    assert measured.percent.value == pytest.approx(0.556, abs=1e-3)


def test_ac1_stays_sane_where_kappa_does_not() -> None:
    """Feinstein and Cicchetti's paradox in Gwet 2008: 118 yes/yes, 5 yes/no, 2 no/yes, 0 no/no.

    Agreement 118/125; kappa = (.944 - .9449) / (1 - .9449) = -.0239. AC1: pi = 243/250, chance 2 pi (1 - pi) = .0544,
    (.944 - .0544) / .9456 = .9408.
    """
    one = ["yes"] * 123 + ["no"] * 2
    two = ["yes"] * 118 + ["no"] * 5 + ["yes"] * 2
    measured = measure(votes({"one": one, "two": two}))
    assert measured.percent.value == pytest.approx(118 / 125)
    assert measured.cohen_kappa["one", "two"].value == pytest.approx(-0.0234, abs=6e-4)
    assert measured.gwet_ac1.value == pytest.approx(0.9408, abs=1e-4)


def test_alpha_of_two_judges_by_hand() -> None:
    """Votes aa, ab, bb; coincidences aa 2, ab 1, ba 1, bb 2; n = 6, observed 2, expected 2 x 3 x 3 = 18.

    alpha = 1 - 5 x 2 / 18.
    """
    measured = measure(votes({"x": ["a", "a", "b"], "y": ["a", "b", "b"]}))
    assert measured.krippendorff_alpha.value == pytest.approx(1 - 5 * 2 / 18)
    assert measured.cohen_kappa["x", "y"].value == pytest.approx((2 / 3 - 4 / 9) / (1 - 4 / 9))


# ------------------------------------------------------------------------------------------- other implementations

MATRIX = st.integers(2, 4).flatmap(
    lambda judges: st.lists(
        st.lists(st.one_of(st.none(), st.integers(1, 4)), min_size=judges, max_size=judges), min_size=3, max_size=12
    )
)


@settings(max_examples=60, deadline=None)
@given(MATRIX, st.sampled_from(["nominal", "ordinal", "interval"]))
def test_alpha_is_krippendorffs(items: list[list[int | None]], level: Any) -> None:
    table = votes({f"j{j}": [row[j] for row in items] for j in range(len(items[0]))})
    pairable = [v for row in items if sum(x is not None for x in row) > 1 for v in row if v is not None]
    ours = measure(table.cast(table.schema.set(2, pa.field("value", pa.float64()))), level).krippendorff_alpha.value
    if len(set(pairable)) < 2:
        assert math.isnan(ours)
        return
    matrix = np.asarray([[math.nan if v is None else v for v in row] for row in items], dtype=float).T
    assert ours == pytest.approx(krippendorff.alpha(matrix, level_of_measurement=level), abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 4])), min_size=2, max_size=30))
def test_cohen_is_scikit_learns(pairs: list[tuple[int, int]]) -> None:
    one, two = ([pair[i] for pair in pairs] for i in (0, 1))
    table = votes({"one": one, "two": two})
    scale = [1, 2, 3, 4]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = cohen_kappa_score(one, two)
        weighted = cohen_kappa_score(one, two, labels=scale, weights="quadratic")
    ours = measure(table).cohen_kappa["one", "two"].value
    assert ours == pytest.approx(plain, nan_ok=True)
    for level in ("ordinal", "interval"):
        ours = measure(table, level, scale).cohen_kappa["one", "two"].value
        assert ours == pytest.approx(weighted, nan_ok=True)


def test_weights_go_by_the_declared_scale_at_ordinal_level_and_by_value_at_interval_level() -> None:
    one, two = [1, 2, 4, 1, 4], [1, 4, 4, 2, 4]
    table = votes({"one": one, "two": two})
    by_place = cohen_kappa_score(one, two, labels=[1, 2, 4], weights="quadratic")
    by_value = cohen_kappa_score(one, two, labels=[1, 2, 3, 4], weights="quadratic")
    assert by_place != by_value
    assert measure(table, "ordinal").cohen_kappa["one", "two"].value == pytest.approx(by_place)
    assert measure(table, "interval").cohen_kappa["one", "two"].value == pytest.approx(by_value)


def test_the_order_of_words_is_the_declared_one() -> None:
    table = votes({"x": ["bad", "ok", "good", "ok"], "y": ["bad", "good", "good", "ok"]})
    numbers = votes({"x": [0, 1, 2, 1], "y": [0, 2, 2, 1]})
    declared = measure(table, "ordinal", ["bad", "ok", "good"])
    assert declared.krippendorff_alpha == measure(numbers, "ordinal").krippendorff_alpha
    with pytest.raises(FactoryError, match="declare categories"):
        measure(table, "ordinal")


# -------------------------------------------------------------------------------------------- intervals and edges


def test_intervals_hold_the_value_and_are_the_same_by_seed() -> None:
    table = from_counts(FLEISS_1971)
    one, again, other = measure(table), measure(table), measure(table, seed=1)
    assert one == again
    assert one.fleiss_kappa != other.fleiss_kappa
    for estimate in (one.percent, one.fleiss_kappa, one.krippendorff_alpha, one.gwet_ac1):
        assert estimate.low < estimate.value < estimate.high


def test_the_interval_of_percent_is_that_of_resampled_items() -> None:
    """60 of 100 items agree: the bootstrap's sd is sqrt(.6 x .4 / 100) = .049, so about .504 to .696."""
    table = votes({"x": [1] * 100, "y": [1] * 60 + [0] * 40})
    _, low, high = measure(table).percent
    assert low == pytest.approx(0.504, abs=0.015)
    assert high == pytest.approx(0.696, abs=0.015)


def test_coverage_of_the_interval_of_alpha() -> None:
    """Two judges who copy a fair coin with chance .8 each: in truth alpha is 1 - 2 x .18 = .64 (they differ on .18)."""
    rng = np.random.default_rng(5)
    hits = 0
    for trial in range(60):
        truth = rng.integers(0, 2, 150)
        said = {j: np.where(rng.random(150) < 0.8, truth, rng.integers(0, 2, 150)).tolist() for j in ("x", "y")}
        _, low, high = measure(votes(said), seed=trial).krippendorff_alpha
        hits += low <= 1 - 2 * 0.18 <= high
    assert hits >= 51


def test_fewer_draws_where_patterns_are_many() -> None:
    assert draws_for(100) == 1000
    assert 200 <= draws_for(10_000_000) < 1000


@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval"])
@pytest.mark.parametrize(
    "by_judge",
    [
        {"x": [1, 2, 3]},
        {"x": [1, None], "y": [None, 2]},
        {"x": [None, None], "y": [None, None]},
    ],
)
def test_without_an_item_that_two_judged_all_is_unknown(by_judge: dict[str, list[int | None]], level: Any) -> None:
    table = votes(by_judge).cast(pa.schema([("item", pa.int64()), ("judge", pa.string()), ("value", pa.int64())]))
    measured = measure(table, level)
    found = [measured.percent, measured.fleiss_kappa, measured.krippendorff_alpha, measured.gwet_ac1]
    assert all(math.isnan(x) for estimate in [*found, *measured.cohen_kappa.values()] for x in estimate)


@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval"])
def test_one_category_is_full_agreement_of_unknown_worth(level: Any) -> None:
    measured = measure(votes({"x": [7, 7, 7], "y": [7, 7, 7]}), level)
    assert measured.percent.value == 1
    assert math.isnan(measured.krippendorff_alpha.value)
    assert math.isnan(measured.fleiss_kappa.value)
    assert math.isnan(measured.gwet_ac1.value)
    assert math.isnan(measured.cohen_kappa["x", "y"].value)


def test_a_declared_category_that_nobody_used_counts_for_ac1() -> None:
    assert measure(votes({"x": [7, 7], "y": [7, 7]}), categories=[7, 8]).gwet_ac1.value == 1


def test_no_votes_at_all() -> None:
    empty = pa.table(
        {"item": pa.array([], pa.int64()), "judge": pa.array([], pa.string()), "value": pa.array([], pa.int64())}
    )
    assert math.isnan(measure(empty).percent.value)
    assert aggregate(empty, "majority").num_rows == 0
    assert aggregate(empty, "dawid_skene").num_rows == 0


def test_nan_is_a_missing_vote() -> None:
    with_nan = votes({"x": [1.0, 2.0, math.nan], "y": [1.0, 1.0, 2.0]})
    with_null = votes({"x": [1.0, 2.0, None], "y": [1.0, 1.0, 2.0]})
    assert measure(with_nan) == measure(with_null)
    assert measure(with_nan).votes == 5


def test_dictionary_encoded_columns_are_votes_too() -> None:
    table = votes({"x": ["p", "q"], "y": ["p", "p"]})
    encoded = pa.table({name: table[name].dictionary_encode() for name in table.column_names})
    assert measure(encoded) == measure(table)
    assert aggregate(encoded).equals(aggregate(table))


def test_faults_of_votes_are_told() -> None:
    with pytest.raises(FactoryError, match="there is no judge"):
        measure(pa.table({"item": [1], "value": [1]}))
    with pytest.raises(FactoryError, match="outside the categories"):
        measure(votes({"x": [1, 9]}), categories=[1, 2])
    with pytest.raises(FactoryError, match="repeat an item and judge"):
        measure(pa.table({"item": [1, 1], "judge": ["x", "x"], "value": [1, 2]}))
    with pytest.raises(FactoryError, match="interval level needs"):
        measure(votes({"x": ["a"]}), "interval")
    with pytest.raises(FactoryError, match="no level named"):
        measure(votes({"x": [1]}), "cardinal")  # type: ignore[arg-type]


def test_measurements_have_alpha_but_no_kappa() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=200)
    noisy = {j: (truth + rng.normal(scale=0.5, size=200)).tolist() for j in ("x", "y")}
    measured = measure(votes(noisy), "interval")
    matrix = np.asarray([noisy["x"], noisy["y"]])
    assert measured.krippendorff_alpha.value == pytest.approx(
        krippendorff.alpha(matrix, level_of_measurement="interval")
    )
    assert measured.krippendorff_alpha.low > 0.6
    assert math.isnan(measured.fleiss_kappa.value)


def test_a_large_mean_does_not_drown_the_differences() -> None:
    small = votes({"x": [1.0, 2.0, 3.0], "y": [1.0, 2.0, 4.0]})
    large = votes({"x": [1e9 + 1, 1e9 + 2, 1e9 + 3], "y": [1e9 + 1, 1e9 + 2, 1e9 + 4]})
    assert measure(large, "interval").krippendorff_alpha.value == pytest.approx(
        measure(small, "interval").krippendorff_alpha.value
    )


def test_json_has_null_for_nan() -> None:
    told = measure(votes({"x": [7, 7], "y": [7, 7]})).to_json()
    assert told["percent"] == [1.0, 1.0, 1.0]
    assert told["cohen_kappa"] == {"x / y": [None, None, None]}


# ------------------------------------------------------------------------------------------------------- aggregation


def rows(table: pa.Table) -> dict[Any, dict[str, Any]]:
    return {row.pop("item"): row for row in table.to_pylist()}


def test_majority_and_its_ties() -> None:
    found = rows(aggregate(votes({"x": ["a", "a", None], "y": ["a", "b", None], "z": ["b", None, "c"]})))
    assert found[0]["value"] == "a"
    assert found[0]["probability"] == pytest.approx(2 / 3)
    assert found[0]["entropy"] == pytest.approx(-(2 / 3) * math.log(2 / 3) - (1 / 3) * math.log(1 / 3))
    assert found[1] == {"value": None, "probability": None, "entropy": pytest.approx(math.log(2))}
    assert found[2] == {"value": "c", "probability": 1.0, "entropy": 0.0}


def test_mean() -> None:
    found = rows(aggregate(votes({"x": [1.0, 2.0], "y": [4.0, math.nan]}), "mean"))
    assert [found[0]["value"], found[1]["value"]] == [2.5, 2.0]
    with pytest.raises(FactoryError, match="numbers"):
        aggregate(votes({"x": ["a"]}), "mean")


def test_dawid_skene_learns_who_to_trust() -> None:
    """One good judge against two who both flip coins: the majority is worse than the good judge, EM is not."""
    rng = np.random.default_rng(2)
    n = 2000
    truth = rng.integers(0, 2, n)
    accuracy = {"good": 0.95, "fair": 0.8, "coin": 0.5, "liar": 0.2, "other coin": 0.5}
    said = {j: np.where(rng.random(n) < p, truth, 1 - truth).tolist() for j, p in accuracy.items()}
    table = votes(said)

    def right(method: str) -> float:
        found = rows(aggregate(table, method))
        return float(np.mean([found[i]["value"] == truth[i] for i in range(n)]))

    assert right("dawid_skene") > 0.95
    assert right("dawid_skene") > right("majority") + 0.1


def plain_dawid_skene(table: pa.Table, rounds: int, smoothing: float) -> dict[Any, dict[Any, float]]:
    """The paper's two steps written out vote by vote: the posterior of each item."""
    said = [(row["item"], row["judge"], row["value"]) for row in table.to_pylist()]
    kinds = sorted({value for *_, value in said})
    items, judges = {item for item, *_ in said}, {judge for _, judge, _ in said}
    t = {i: dict.fromkeys(kinds, 0.0) for i in items}
    for i in items:
        mine = [value for item, _, value in said if item == i]
        for value in mine:
            t[i][value] += 1 / len(mine)
    for _ in range(rounds):
        pi = {j: {k: dict.fromkeys(kinds, smoothing) for k in kinds} for j in judges}
        for i, j, v in said:
            for k in kinds:
                pi[j][k][v] += t[i][k]
        p = {k: smoothing + sum(t[i][k] for i in items) for k in kinds}
        odds = {i: dict(p) for i in items}
        for i, j, v in said:
            for k in kinds:
                odds[i][k] *= pi[j][k][v] / sum(pi[j][k].values())
        t = {i: {k: odds[i][k] / sum(odds[i].values()) for k in kinds} for i in items}
    return t


def test_dawid_skene_is_the_papers_two_steps() -> None:
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 3, 40)
    said = {f"j{j}": np.where(rng.random(40) < 0.7, truth, rng.integers(0, 3, 40)).tolist() for j in range(4)}
    said["j0"][:10] = [None] * 10
    table = votes(said)
    ours = likeliest(encode(table), rounds=25, tolerance=0)
    theirs = plain_dawid_skene(table.filter(table.column("value").is_valid()), 25, 0.01)
    for place, item in enumerate(encode(table).items):
        assert ours[place] == pytest.approx([theirs[item][k] for k in range(3)], abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(MATRIX, st.sampled_from(["majority", "dawid_skene"]))
def test_aggregates_do_not_depend_on_the_order_of_votes(items: list[list[int | None]], method: str) -> None:
    table = votes({f"j{j}": [row[j] for row in items] for j in range(len(items[0]))})
    table = table.cast(table.schema.set(2, pa.field("value", pa.int64())))
    turned = table.take(list(reversed(range(table.num_rows))))
    one, two = rows(aggregate(table, method)), rows(aggregate(turned, method))
    assert one.keys() == two.keys()
    for item, row in one.items():
        assert row["entropy"] == pytest.approx(two[item]["entropy"], abs=1e-4)
        assert 0 <= row["entropy"] <= math.log(4) + 1e-9
        if row["probability"] is not None and row["probability"] > 0.51:
            assert row["value"] == two[item]["value"]


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(FactoryError, match="did you mean 'majority'"):
        aggregate(votes({"x": [1]}), "majorty")


# --------------------------------------------------------------------------------------------------- judges of a round


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


def test_full_agreement_on_few_pairs_is_not_certainty() -> None:
    """Three of three: Wilson's interval reaches down to 3 / (3 + 1.96^2) = 43.9%."""
    candidates = [candidate_of(key) for key in "abc"]
    pairs = [("a", "b"), ("a", "c"), ("b", "c")]
    judgments = [row for judge in ("x", "y") for pair in pairs for row in both(judge, *pair, 0.9, 0.9)]
    (found,) = between(judgments, candidates).pairs
    assert found.percent == (1.0, pytest.approx(3 / (3 + 1.959964**2), abs=1e-6), 1.0)


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
