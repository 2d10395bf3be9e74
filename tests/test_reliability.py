"""Coefficients against published examples, other implementations, and the formulas written out."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import krippendorff
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings, strategies as st
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.inter_rater import fleiss_kappa
from voted import from_counts, matrices, table_of, votes

from factory.faults import FactoryError
from factory.stats import coefficients
from factory.votes.aggregation import aggregate
from factory.votes.reliability import AgreementReport, measure


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


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


@settings(max_examples=60, deadline=None)
@given(matrices(), st.sampled_from(["nominal", "ordinal", "interval"]))
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


@pytest.mark.parametrize(
    ("weights", "level", "ac2", "brennan_prediger"),
    [
        ("identity", "nominal", 0.77544407, 0.77272727),
        ("ordinal", "ordinal", 0.89893977, 0.88636364),
        ("linear", "interval", 0.85873914, 0.84848485),
        ("quadratic", "interval", 0.91400072, 0.90151515),
        ("ratio", "ratio", 0.85736756, 0.84023669),
    ],
)
def test_ac2_and_brennan_prediger_are_irrcacs(weights: Any, level: Any, ac2: float, brennan_prediger: float) -> None:
    """irrCAC 0.4.4 wants scipy 1.12 and pandas 2, and counts NaN as a category unless told the categories, so that its
    values are kept here. `d` holds KRIPPENDORFF_2011:

    c = CAC(pd.DataFrame(d), weights=weights, categories=[1, 2, 3, 4, 5], digits=8); c.gwet(), c.bp()
    """
    measured = measure(votes(KRIPPENDORFF_2011), level, weights=weights)
    assert measured.gwet_ac2.value == pytest.approx(ac2, abs=1e-8)
    assert measured.brennan_prediger.value == pytest.approx(brennan_prediger, abs=1e-8)


@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval", "ratio"])
def test_alpha_of_the_example_at_every_level_is_krippendorffs(level: Any) -> None:
    matrix = np.asarray(
        [[math.nan if v is None else v for v in said] for said in KRIPPENDORFF_2011.values()], dtype=float
    )
    ours = measure(votes(KRIPPENDORFF_2011), level).krippendorff_alpha.value
    assert ours == pytest.approx(krippendorff.alpha(matrix, level_of_measurement=level), abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=3, max_size=3), min_size=2, max_size=12))
def test_fleiss_is_statsmodels(items: list[list[int]]) -> None:
    """Which wants the same number of votes on every item."""
    counts = np.asarray([[row.count(k) for k in range(4)] for row in items])
    with np.errstate(all="ignore"):
        known = fleiss_kappa(counts)
    assert measure(table_of(items), categories=[0, 1, 2, 3]).fleiss_kappa.value == pytest.approx(known, nan_ok=True)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=2, max_size=30))
def test_linear_weights_are_scikit_learns_with_the_scale_as_labels(pairs: list[tuple[int, int]]) -> None:
    one, two = ([pair[i] for pair in pairs] for i in (0, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        known = cohen_kappa_score(one, two, labels=[1, 2, 3, 4], weights="linear")
    measured = measure(votes({"one": one, "two": two}), "ordinal", [1, 2, 3, 4], weights="linear")
    assert measured.cohen_kappa["one", "two"].value == pytest.approx(known, nan_ok=True)
    assert measured.cohen_weights == "linear"


# ------------------------------------------------------------------------------------------- formulas written out

SCALE = [1, 2, 3, 4]
WEIGHTS: dict[str, Callable[[int, int], float]] = {
    "identity": lambda x, y: float(x == y),
    "ordinal": lambda x, y: 1 - math.comb(abs(x - y) + 1, 2) / math.comb(4, 2),
    "linear": lambda x, y: 1 - abs(x - y) / 3,
    "quadratic": lambda x, y: 1 - (x - y) ** 2 / 9,
    "ratio": lambda x, y: 1 - ((x - y) / (x + y)) ** 2 / (3 / 5) ** 2,
}


def chance_corrected(items: Sequence[Sequence[int | None]], weight: Callable[[int, int], float]) -> dict[str, float]:
    """AC2 and Brennan-Prediger from pairs of votes, one at a time."""
    given_votes = [[v for v in row if v is not None] for row in items]
    several = [row for row in given_votes if len(row) > 1]
    if not several:
        return {"gwet_ac2": math.nan, "brennan_prediger": math.nan}
    agreed = [np.mean([weight(x, y) for x, y in itertools.permutations(row, 2)]) for row in several]
    voted = [row for row in given_votes if row]
    shares = [np.mean([row.count(k) / len(row) for row in voted]) for k in SCALE]
    total = sum(weight(x, y) for x in SCALE for y in SCALE)
    chance = {
        "gwet_ac2": total / 12 * sum(p * (1 - p) for p in shares),
        "brennan_prediger": total / 16,
    }
    return {name: float((np.mean(agreed) - e) / (1 - e)) for name, e in chance.items()}


@settings(max_examples=60, deadline=None)
@given(matrices(), st.sampled_from(sorted(WEIGHTS)))
def test_ac2_and_brennan_prediger_are_their_formulas(items: list[list[int | None]], weights: Any) -> None:
    level: Any = {"identity": "nominal", "ordinal": "ordinal", "ratio": "ratio"}.get(weights, "interval")
    measured = measure(table_of(items), level, SCALE, weights=weights)
    for name, value in chance_corrected(items, WEIGHTS[weights]).items():
        assert getattr(measured, name).value == pytest.approx(value, nan_ok=True, abs=1e-9)


def values(measured: AgreementReport) -> list[float]:
    named = ("percent", "fleiss_kappa", "krippendorff_alpha", "gwet_ac1", "gwet_ac2", "brennan_prediger")
    return [getattr(measured, name).value for name in named]


LEVELS = ["nominal", "ordinal", "interval", "ratio"]


@settings(max_examples=40, deadline=None)
@given(matrices(), st.sampled_from(LEVELS), st.randoms())
def test_order_of_items_judges_and_votes_does_not_matter(
    items: list[list[int | None]], level: Any, random: Any
) -> None:
    turned = [list(row) for row in items]
    random.shuffle(turned)
    order = random.sample(range(len(items[0])), len(items[0]))
    turned = [[row[j] for j in order] for row in turned]
    one, two = measure(table_of(items), level, SCALE), measure(table_of(turned), level, SCALE)
    assert values(one) == pytest.approx(values(two), nan_ok=True, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(matrices(), st.permutations(SCALE))
def test_names_of_categories_do_not_matter_at_nominal_level(items: list[list[int | None]], names: list[int]) -> None:
    turned = [[None if v is None else names[v - 1] for v in row] for row in items]
    one, two = measure(table_of(items), categories=SCALE), measure(table_of(turned), categories=SCALE)
    assert values(one) == pytest.approx(values(two), nan_ok=True, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(matrices(), st.sampled_from([1e-9, 0.5, 1e6]))
def test_the_unit_of_a_scale_does_not_matter(items: list[list[int | None]], unit: float) -> None:
    grown = [[None if v is None else v * unit for v in row] for row in items]
    table = table_of(items).set_column(2, "value", pa.array([v for j in zip(*grown, strict=True) for v in j]))
    table = table.set_column(2, "value", table.column("value").cast(pa.float64()))
    for level in ("interval", "ratio"):
        one, two = measure(table_of(items), level), measure(table, level)
        assert values(one) == pytest.approx(values(two), nan_ok=True, abs=1e-7)


@pytest.mark.parametrize("level", LEVELS)
def test_full_agreement_is_one(level: Any) -> None:
    said: list[int | None] = [1, 2, 3, 4, 4, None, 2]
    measured = measure(votes({"x": said, "y": said, "z": said}), level)
    assert values(measured) == pytest.approx([1.0] * 6)
    assert measured.krippendorff_alpha == (1.0, 1.0, 1.0)
    assert [kappa.value for kappa in measured.cohen_kappa.values()] == pytest.approx([1.0] * 3)


@pytest.mark.parametrize("level", LEVELS)
def test_chance_is_about_zero(level: Any) -> None:
    rng = np.random.default_rng(1)
    measured = measure(votes({j: rng.integers(1, 5, 20000).tolist() for j in "xyz"}), level)
    assert values(measured)[1:] == pytest.approx([0.0] * 5, abs=0.02)


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


def test_groups_of_items_give_the_interval_of_items(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where patterns are many, groups are drawn: the same value, nearly the same bounds."""
    rng = np.random.default_rng(9)
    truth = rng.integers(1, 5, 3000)
    said = np.where(rng.random((3000, 20)) < 0.6, truth[:, None], rng.integers(1, 5, (3000, 20)))
    table = votes({f"j{j}": said[:, j].tolist() for j in range(20)})
    for level in LEVELS:
        by_item = measure(table, level)
        with monkeypatch.context() as patched:
            patched.setattr(coefficients, "GROUPS", 400)
            by_group = measure(table, level)
        assert (by_item.resampled, by_group.resampled) == ("items", "400 random groups of items")
        assert values(by_group) == pytest.approx(values(by_item), abs=1e-9)
        for name in ("percent", "fleiss_kappa", "krippendorff_alpha", "gwet_ac2"):
            one, two = getattr(by_item, name), getattr(by_group, name)
            assert two.high - two.low == pytest.approx(one.high - one.low, rel=0.2)


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
    with pytest.raises(FactoryError, match="ratio level needs votes of 0 or more"):
        measure(votes({"x": [-1.0, 2.0]}), "ratio")
    with pytest.raises(FactoryError, match="need an order of the categories"):
        measure(votes({"x": [1]}), weights="linear")
    with pytest.raises(FactoryError, match="need a scale with a zero"):
        measure(votes({"x": [1]}), "interval", weights="ratio")
    with pytest.raises(FactoryError, match="did you mean 'linear'"):
        measure(votes({"x": [1]}), "interval", weights="linar")  # type: ignore[arg-type]
    with pytest.raises(FactoryError, match="too many at ordinal level"):
        measure(votes({"x": list(range(301))}), "ordinal")
    with pytest.raises(FactoryError, match="no level named"):
        measure(votes({"x": [1]}), "cardinal")  # type: ignore[arg-type]


def test_measurements_have_alpha_but_no_kappa() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=80)
    noisy = {j: (truth + rng.normal(scale=0.5, size=80)).tolist() for j in ("x", "y")}
    measured = measure(votes(noisy), "interval")
    matrix = np.asarray([noisy["x"], noisy["y"]])
    assert measured.krippendorff_alpha.value == pytest.approx(
        krippendorff.alpha(matrix, level_of_measurement="interval")
    )
    assert measured.krippendorff_alpha.low > 0.5
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
