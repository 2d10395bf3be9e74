"""Dawid-Skene and one-coin against the paper written out, another implementation, and known truth."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from crowdkit.aggregation import DawidSkene, OneCoinDawidSkene
from hypothesis import given, settings, strategies as st
from voted import matrices, noisy, of_matrix, rows, table_of, votes

from factory.faults import FactoryError
from factory.votes.aggregation import Decided, aggregate, encode, methods
from factory.votes.latent import coin, dawid_skene, fit, full, one_coin, profiles


def right(decided: Decided, truth: Any) -> float:
    return float(np.mean(np.asarray(decided.value) == truth))


# ----------------------------------------------------------------------------------------------------- known truth


def test_dawid_skene_learns_who_to_trust() -> None:
    """One good judge, one fair, one liar, two who flip coins: the majority is worse than the good judge, EM is not."""
    rng = np.random.default_rng(2)
    truth = rng.integers(0, 2, 2000)
    accuracy = [0.95, 0.8, 0.5, 0.2, 0.5]
    said = of_matrix(noisy(rng, truth, accuracy))
    found = dawid_skene(said)
    assert right(found, truth) > 0.9
    assert right(found, truth) > right(methods.get("majority")(said), truth) + 0.1
    assert found.model is not None
    assert list(found.model.accuracy.values()) == pytest.approx(accuracy, abs=0.04)
    assert found.model.converged
    assert "count against: j3" in found.model.notes[0]


@pytest.mark.parametrize("method", ["dawid_skene", "one_coin"])
def test_the_posterior_is_calibrated_where_judges_are_independent(method: str) -> None:
    """Of the items given a probability of about p, a share of about p has the value: mean Brier is mean p (1 - p)."""
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 3, 6000)
    found = methods.get(method)(of_matrix(noisy(rng, truth, [0.75, 0.7, 0.6, 0.55, 0.5], kinds=3)))
    assert found.posterior is not None
    top = found.posterior.max(axis=1)
    hit = found.posterior.argmax(axis=1) == truth
    for low, high in ((0.4, 0.6), (0.6, 0.8), (0.8, 0.95), (0.95, 1.0)):
        held = (top >= low) & (top < high)
        assert held.sum() > 100
        assert hit[held].mean() == pytest.approx(top[held].mean(), abs=0.04)


def test_a_confusion_that_is_no_coin_is_learnt() -> None:
    """A judge who calls every 2 a 1, and is otherwise right, is worth much to who knows it."""
    rng = np.random.default_rng(4)
    truth = rng.integers(0, 3, 3000)
    said = noisy(rng, truth, [0.7] * 5, kinds=3)
    said[:, 0] = np.where(truth == 2, 1, truth)
    model = dawid_skene(of_matrix(said)).model
    assert model is not None
    assert model.confusion[0] == pytest.approx(np.asarray([[1, 0, 0], [0, 1, 0], [0, 1, 0]]), abs=0.08)


def test_one_coin_is_better_where_votes_are_few() -> None:
    """Three categories, forty items: six numbers a judge are too many to learn."""
    coins, full_matrices = [], []
    for seed in range(25):
        rng = np.random.default_rng(seed)
        truth = rng.integers(0, 3, 40)
        said = of_matrix(noisy(rng, truth, [0.5, 0.55, 0.6, 0.65], kinds=3))
        coins.append(right(one_coin(said), truth))
        full_matrices.append(right(dawid_skene(said), truth))
    assert np.mean(coins) > np.mean(full_matrices) + 0.01


# ------------------------------------------------------------------------------------------- other implementations


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
    said: dict[str, list[int | None]] = {
        f"j{j}": np.where(rng.random(40) < 0.7, truth, rng.integers(0, 3, 40)).tolist() for j in range(4)
    }
    said["j0"][:10] = [None] * 10
    table = votes(said)
    ours = dawid_skene(encode(table), rounds=25, tolerance=-1).posterior
    theirs = plain_dawid_skene(table.filter(table.column("value").is_valid()), 25, 0.01)
    assert ours is not None
    for place, item in enumerate(encode(table).items):
        assert ours[place] == pytest.approx([theirs[item][k] for k in range(3)], abs=1e-9)


@pytest.mark.parametrize(("ours", "theirs"), [(dawid_skene, DawidSkene), (one_coin, OneCoinDawidSkene)])
def test_posteriors_are_crowd_kits(ours: Any, theirs: Any) -> None:
    """After as many rounds, from the same start and without smoothing to speak of."""
    rng = np.random.default_rng(11)
    said = noisy(rng, rng.integers(0, 3, 300), [0.8, 0.7, 0.6, 0.6, 0.5], kinds=3)
    said[rng.random(said.shape) < 0.2] = -1
    given = of_matrix(said)
    frame = pd.DataFrame({"task": given.item, "worker": given.judge, "label": given.value})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        known = theirs(n_iter=20, tol=-1).fit(frame).probas_.sort_index()
    found = ours(given, rounds=20, tolerance=-1, smoothing=1e-12).posterior
    voted = sorted(set(given.item.tolist()))
    assert found[voted] == pytest.approx(known[[0, 1, 2]].to_numpy(), abs=1e-6)


def test_an_item_without_votes_does_not_exist_in_a_table() -> None:
    table = votes({"x": ["a", None], "y": ["a", None], "z": ["b", None]})
    assert list(rows(aggregate(table, "dawid_skene"))) == [0]


# ---------------------------------------------------------------------------------------------------- properties


@settings(max_examples=40, deadline=None)
@given(matrices(fewest=3), st.sampled_from(["dawid_skene", "one_coin"]), st.randoms())
def test_nothing_hangs_on_the_order_of_votes_items_and_judges(
    items: list[list[int | None]], method: str, random: Any
) -> None:
    if sum(any(row[j] is not None for row in items) for j in range(len(items[0]))) < 3:
        return
    table = table_of(items)
    order = list(range(table.num_rows))
    random.shuffle(order)
    one, two = (rows(aggregate(t, method, rounds=20)) for t in (table, table.take(order)))
    assert one.keys() == two.keys()
    for item, row in one.items():
        assert row["entropy"] == pytest.approx(two[item]["entropy"], abs=1e-6)
        assert 0 <= row["entropy"] <= math.log(4) + 1e-9
        if row["probability"] is not None and row["probability"] > 0.51:
            assert row["value"] == two[item]["value"]


@settings(max_examples=40, deadline=None)
@given(matrices(fewest=3), st.permutations([1, 2, 3, 4]))
def test_renamed_categories_rename_the_values(items: list[list[int | None]], names: list[int]) -> None:
    if sum(any(row[j] is not None for row in items) for j in range(len(items[0]))) < 3:
        return
    turned = [[None if v is None else names[v - 1] for v in row] for row in items]
    one, two = (encode(table_of(m), [1, 2, 3, 4]) for m in (items, turned))
    ours, theirs = (dawid_skene(v, rounds=20).posterior for v in (one, two))
    assert ours is not None
    assert theirs is not None
    assert ours == pytest.approx(theirs[:, [n - 1 for n in names]], abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(matrices(fewest=1))
def test_profiles_hold_every_vote(items: list[list[int | None]]) -> None:
    table = table_of(items)
    given_votes = encode(table)
    found = profiles(given_votes)
    by_profile = {int(p): set() for p in range(len(found.times))}
    for item, judge, value in zip(found.said.item, found.said.judge, found.said.value, strict=True):
        by_profile[int(item)].add((int(judge), int(value)))
    whole = [set() for _ in given_votes.items]
    for item, judge, value in zip(given_votes.item, given_votes.judge, given_votes.value, strict=True):
        whole[int(item)].add((int(judge), int(value)))
    assert [by_profile[int(p)] for p in found.profile] == whole
    assert found.times.sum() == len(whole)
    assert len({frozenset(v) for v in by_profile.values()}) == len(by_profile)


def test_many_judges_whose_profiles_do_not_fit_a_number() -> None:
    rng = np.random.default_rng(5)
    truth = rng.integers(0, 2, 300)
    said = of_matrix(noisy(rng, truth, [0.6] * 60))
    assert len(profiles(said).times) == 300
    assert right(dawid_skene(said), truth) > 0.9


# ------------------------------------------------------------------------------------------ what cannot be known


@pytest.mark.parametrize("method", ["dawid_skene", "one_coin"])
def test_two_judges_are_refused(method: str) -> None:
    with pytest.raises(FactoryError, match="needs the votes of 3 judges and has 2"):
        aggregate(votes({"x": ["a", "b"], "y": ["a", "a"], "z": [None, None]}), method)


@pytest.mark.parametrize("method", ["dawid_skene", "one_coin"])
def test_judges_that_are_mostly_wrong_win_by_majority(method: str) -> None:
    """Mirrored judges explain the votes as well: the result follows the majority, and is the mirror of the truth."""
    rng = np.random.default_rng(6)
    truth = rng.integers(0, 2, 1000)
    found = methods.get(method)(of_matrix(noisy(rng, truth, [0.2] * 5)))
    assert right(found, truth) < 0.1
    assert found.model is not None
    assert min(found.model.accuracy.values()) > 0.7


def test_one_category_and_perfect_agreement() -> None:
    alike = dawid_skene(encode(votes({"x": [7, 7], "y": [7, 7], "z": [7, 7]})))
    assert list(alike.value) == [7, 7]
    assert alike.posterior == pytest.approx(np.ones((2, 1)))
    both = dawid_skene(encode(votes({j: [0, 1] * 20 for j in "xyz"})))
    assert list(both.value) == [0, 1] * 20
    assert both.posterior is not None
    assert both.posterior.max(axis=1).min() > 0.999


def test_an_item_that_is_even_in_every_way_is_undecided() -> None:
    table = votes({"x": ["a", "b"], "y": ["b", "a"], "z": [None, None], "w": ["a", "b"], "v": ["b", "a"]})
    found = rows(aggregate(table, "one_coin"))
    assert found[0]["value"] is None
    assert found[0]["entropy"] == pytest.approx(math.log(2))


def test_a_judge_without_votes_has_no_accuracy() -> None:
    model = dawid_skene(encode(votes({"x": [0, 1], "y": [0, 1], "z": [0, 1], "none": [None, None]}))).model
    assert model is not None
    assert math.isnan(model.accuracy["none"])


def test_no_votes_at_all() -> None:
    empty = pa.table(
        {"item": pa.array([], pa.int64()), "judge": pa.array([], pa.string()), "value": pa.array([], pa.int64())}
    )
    assert aggregate(empty, "dawid_skene").num_rows == 0
    assert aggregate(empty, "one_coin").num_rows == 0


def test_em_that_is_cut_short_says_so() -> None:
    rng = np.random.default_rng(7)
    given_votes = of_matrix(noisy(rng, rng.integers(0, 2, 200), [0.6] * 4))
    model = dawid_skene(given_votes, rounds=2).model
    assert model is not None
    assert (model.rounds, model.converged) == (2, False)


def test_likelihood_never_falls() -> None:
    """EM's promise, from round to round, for both kinds of confusion."""
    rng = np.random.default_rng(8)
    given_votes = of_matrix(noisy(rng, rng.integers(0, 2, 200), [0.6, 0.7, 0.8]))
    said = profiles(given_votes)
    for confuse in (full, coin):
        reached = []
        for done in range(1, 12):
            found = fit(said, confuse, done, -1, 1e-12)
            log = np.log(found.prior)[None, :] + sum(
                np.where(
                    (m := _said_by(said.said, j))[:, None] >= 0, np.log(found.confusion[j][:, np.maximum(m, 0)]).T, 0.0
                )
                for j in range(3)
            )
            reached.append(float(said.times @ np.log(np.exp(log).sum(axis=1))))
        assert np.all(np.diff(reached) > -1e-9)


def _said_by(given_votes: Any, judge: int) -> Any:
    said = np.full(len(given_votes.items), -1)
    mine = given_votes.judge == judge
    said[given_votes.item[mine]] = given_votes.value[mine]
    return said
