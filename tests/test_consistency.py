"""How alike two judges rank the same answers: the rates of CREAM by hand, against scipy, and from a store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, strategies as st
from judged import both, candidate_of, pairwise, pointwise, prompt_of
from scipy import stats

from factory import verdicts
from factory.faults import FactoryError
from factory.store import Store
from factory.trust import consistency

SCORES = st.lists(st.integers(0, 5).map(float), min_size=2, max_size=7)
PAIRS = SCORES.flatmap(
    lambda a: st.tuples(st.just(a), st.lists(st.integers(0, 5).map(float), min_size=len(a), max_size=len(a)))
)
KENDALL, SPEARMAN, TOP = (consistency.methods.get(name) for name in ("kendall", "spearman", "top_order"))


def test_kendall_by_hand() -> None:
    """Of six pairs of four answers five are ranked alike and one is not: tau = 4/6, C = 5/6."""
    assert KENDALL([4, 3, 2, 1], [4, 3, 1, 2]) == pytest.approx(5 / 6)
    assert KENDALL([1, 2, 3], [3, 2, 1]) == 0.0
    assert KENDALL([1, 2, 3], [10, 20, 30]) == 1.0


def test_a_judge_that_tells_nothing_apart_agrees_with_nobody() -> None:
    """The authors' code breaks ties by place in the list, so that two constant judges agree wholly."""
    assert KENDALL([3, 3, 3], [3, 3, 3]) == 0.5
    assert SPEARMAN([3, 3, 3], [1, 2, 3]) == 0.5
    assert TOP([3, 3, 3], [3, 3, 3]) == 0.0


def test_top_order_asks_for_the_same_best_and_worst() -> None:
    assert TOP([5, 3, 2, 1], [9, 2, 3, 0]) == 1.0
    assert TOP([5, 3, 2, 1], [9, 2, 0, 3]) == 0.0
    assert TOP([5, 5, 1], [5, 4, 1]) == 0.0


@given(st.permutations(range(6)), st.permutations(range(6)))
def test_without_ties_the_rates_are_scipys(a: list[int], b: list[int]) -> None:
    assert KENDALL(a, b) == pytest.approx((stats.kendalltau(a, b).statistic + 1) / 2)
    assert SPEARMAN(a, b) == pytest.approx((stats.spearmanr(a, b).statistic + 1) / 2)


@given(PAIRS)
def test_every_rate_is_a_share_the_same_both_ways_and_for_any_order(pair: tuple[list[float], list[float]]) -> None:
    first, second = pair
    for method in (KENDALL, SPEARMAN, TOP):
        rate = method(first, second)
        assert 0 <= rate <= 1
        assert method(second, first) == pytest.approx(rate)
        assert method(first[::-1], second[::-1]) == pytest.approx(rate)
    assert SPEARMAN([-s for s in first], second) == pytest.approx(1 - SPEARMAN(first, second))
    assert KENDALL([-s for s in first], second) == pytest.approx(1 - KENDALL(first, second))


def test_many_prompts_have_a_mean_a_smoothing_and_weights() -> None:
    found = consistency.between(
        {
            "alike": ({"x": 1, "y": 2, "z": 3}, {"x": 1, "y": 2, "z": 3}),
            "half": ({"x": 1, "y": 2, "z": 3}, {"x": 2, "y": 1, "z": 3, "other": 0}),
            "one shared": ({"x": 1, "y": 2}, {"x": 1, "z": 2}),
            "nothing": ({}, {}),
        }
    )
    assert found.rates == {"alike": 1.0, "half": pytest.approx(2 / 3)}
    assert (found.mean, found.left_out) == (pytest.approx(5 / 6), 2)
    assert found.label_smoothing == pytest.approx(1 / 6)
    assert found.weights(0.8) == {"alike": 1.0, "half": 0.8}
    assert consistency.between({"p": ({"x": 1, "y": 2}, {"x": 2, "y": 1})}).label_smoothing == 0.5
    empty = consistency.between({})
    assert (empty.mean, empty.label_smoothing, empty.weights()) == (None, None, {})
    with pytest.raises(FactoryError, match="did you mean 'kendall'"):
        consistency.between({}, "kendal")


def test_the_smoothed_loss_is_the_papers() -> None:
    """C L(d) + (1 - C) L(-d), with cdpo's label smoothing of 1 - C."""
    torch = pytest.importorskip("torch")
    from train import losses

    rate = 5 / 6
    d = torch.tensor([0.7, -2.0], dtype=torch.float64)
    zero = torch.zeros_like(d)
    logps = losses.PairLogps(d, zero, zero, zero, torch.ones_like(d), torch.ones_like(d))
    smoothed = losses.get("cdpo")(logps, beta=0.5, label_smoothing=1 - rate).loss
    log_sigmoid = torch.nn.functional.logsigmoid
    assert torch.allclose(smoothed, -(rate * log_sigmoid(0.5 * d) + (1 - rate) * log_sigmoid(-0.5 * d)))


def test_a_pairwise_judge_ranks_by_its_mean_chance_and_leaves_out_what_it_could_not_compare() -> None:
    rows = [*both("j", "x", "y", 0.9, 0.8), *both("j", "x", "z", 0.6, 0.6), *both("j", "y", "z", 0.3, 0.3)]
    panel = verdicts.read(rows)
    ranked = consistency.ranking(panel, "j", ["x", "y", "z"])
    assert ranked == {"x": pytest.approx(0.725), "y": pytest.approx(0.225), "z": pytest.approx(0.55)}
    broken = verdicts.read([*rows[:4], *both("j", "y", "z", None, 0.3)])
    assert set(consistency.ranking(broken, "j", ["x", "y", "z"])) == {"x"}
    assert consistency.ranking(panel, "nobody", ["x", "y"]) == {}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store", create=True) as opened:
        yield opened


def test_weights_from_the_judgments_of_two_rounds_policies(store: Store) -> None:
    prompts = [prompt_of(f"Topic {n}") for n in range(3)]
    store.append("prompts", prompts)
    for n, prompt in enumerate(prompts):
        store.append("candidates", [candidate_of(f"{n}-{k}", prompt=prompt) for k in range(3)])
        store.append("judgments", [pointwise("now", f"{n}-{k}", k, high=5) for k in range(3)])
        before = (0, 1, 2) if n == 0 else (2, 1, 0)
        store.append("judgments", [pointwise("before", f"{n}-{k}", s, high=5) for k, s in enumerate(before) if n < 2])
    store.append("judgments", [pairwise("other", "0-0", "0-1", 0.9)])
    found = consistency.measure(store, run="r", round=0, judge="now", previous="before")
    assert found.rates == {prompts[0].key: 1.0, prompts[1].key: 0.0}
    assert (found.mean, found.left_out, found.label_smoothing) == (0.5, 1, 0.5)
    assert found.weights(floor=0.1) == {
        prompts[0].key: 1.0,
        prompts[1].key: 0.1,
    }
    with pytest.raises(FactoryError, match="no judgments by never"):
        consistency.measure(store, run="r", round=0, judge="now", previous="never")
    with pytest.raises(FactoryError, match="name two judges"):
        consistency.measure(store, run="r", round=0, judge="now", previous="now")
    with pytest.raises(FactoryError, match="no rank correlation named"):
        consistency.measure(store, run="r", round=0, judge="now", previous="before", method="pearson")
