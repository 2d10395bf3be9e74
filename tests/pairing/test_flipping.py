"""Label noise on purpose: how much is turned about, that it is the same everywhere, and that the rows say so."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st
from judged import candidate_of, pointwise, prompt_of

from factory import recipe as recipes
from factory.faults import FactoryError
from factory.pairing import Choice, Filters, Group, LabelRule, pair, strategies
from factory.pairing.choosing import is_flipped, turned
from factory.rounds import stages, sweep as sweeps
from factory.rounds.branching import Point
from factory.rounds.runbook import Run
from factory.schema import Label, Preference, digest
from factory.store import Store

SHARE = st.floats(0, 1)
SEED = st.integers(0, 2**31 - 1)
PAIRS = [(candidate_of(f"a{i}"), candidate_of(f"b{i}")) for i in range(400)]


def flipped(share: float, seed: int) -> set[int]:
    return {place for place, answers in enumerate(PAIRS) if is_flipped(share, seed, *answers)}


@settings(deadline=None)
@given(SHARE, SHARE, SEED)
def test_a_larger_share_flips_all_that_a_smaller_one_does(one: float, other: float, seed: int) -> None:
    assert flipped(min(one, other), seed) <= flipped(max(one, other), seed)


@settings(deadline=None)
@given(SHARE, SEED)
def test_about_the_share_is_flipped(share: float, seed: int) -> None:
    """Within six standard deviations of a binomial."""
    room = 6 * math.sqrt(len(PAIRS) * share * (1 - share))
    assert abs(len(flipped(share, seed)) - share * len(PAIRS)) <= room + 1


@settings(deadline=None)
@given(SEED)
def test_none_and_all(seed: int) -> None:
    assert flipped(0.0, seed) == set()
    assert flipped(1.0, seed) == set(range(len(PAIRS)))


@settings(deadline=None)
@given(SHARE, SEED, st.text(max_size=5), st.text(max_size=5))
def test_the_draw_is_of_the_texts_in_whatever_order_or_run(share: float, seed: int, one: str, other: str) -> None:
    """A run that shares the answers has them under other keys."""
    a, b = candidate_of("a", one), candidate_of("b", other)
    elsewhere = replace(b, key=f"{b.key}12345678", run="other"), replace(a, key=f"{a.key}12345678", run="other")
    assert is_flipped(share, seed, a, b) == is_flipped(share, seed, *elsewhere)


def test_seeds_differ() -> None:
    assert flipped(0.5, 1) != flipped(0.5, 2)


@settings(max_examples=30, deadline=None)
@given(SEED, st.sampled_from(strategies.names()))
def test_a_run_that_shares_the_answers_draws_the_same_pairs(seed: int, strategy: str) -> None:
    """Six pairs that nothing but the draw tells apart."""
    keys = [digest(i) for i in range(4)]

    def drawn(suffix: str) -> list[tuple[str, str]]:
        answers = [candidate_of(f"{key}{suffix}", key) for key in keys]
        decided = [Choice(a, b, 0.4, 1.0, 1) for i, a in enumerate(answers) for b in answers[i + 1 :]]
        ranks = {answer.key: 1 - i / 10 for i, answer in enumerate(answers)}
        found = strategies.get(strategy)(Group(decided, ranks, ranks, ranks), seed)
        return [(c.chosen.text, c.rejected.text) for c in found]

    assert drawn("") == drawn("0a1b2c3d") != []


def test_a_choice_turned_twice_is_itself() -> None:
    choice = Choice(candidate_of("a"), candidate_of("b"), 0.5, 1.0, 2, 0.9, 0.3)
    assert turned(choice).chosen.key == "b"
    assert turned(turned(choice)) == choice


# ---------------------------------------------------------------------------------------------------- in the store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Forty prompts with a good and a bad answer; the better one of the first thirty is the longer."""
    with Store.open(tmp_path / "store", create=True) as opened:
        for i in range(40):
            one = prompt_of(f"Tell me about {i}.")
            opened.append("prompts", [one])
            good, bad = ("a much longer answer", "short") if i < 30 else ("short", "a much longer answer")
            answers = [
                candidate_of(f"{i}g", f"{good} {i}", prompt=one),
                candidate_of(f"{i}b", f"{bad} {i}", prompt=one),
            ]
            opened.append("candidates", answers)
            opened.append("judgments", [pointwise("v", f"{i}g", 1.0), pointwise("v", f"{i}b", 0.25)])
        yield opened


def ends(store: Store, name: str) -> dict[tuple[str, str], bool]:
    """(chosen, rejected) of a pairing, and whether it is marked."""
    rows = store.rows(Preference, {"strategy": name})
    return {(row.chosen_key, row.rejected_key): row.flipped for row in rows}


def test_what_is_flipped_is_the_opposite_and_marked(store: Store) -> None:
    pair(store, run="r", name="clean")
    report = pair(store, run="r", name="noisy", flip=0.3)
    clean, noisy = ends(store, "clean"), ends(store, "noisy")
    turned_about = {(b, a) for (a, b), marked in noisy.items() if marked}
    assert not any(clean.values())
    assert 0 < len(turned_about) < 40
    assert {pair for pair, marked in noisy.items() if not marked} | turned_about == set(clean)
    assert report.flipped == len(turned_about)
    assert (report.preferences, report.mean_margin) == (40, pytest.approx(0.75))
    assert any(f"{len(turned_about)} of 40 preferences" in warning for warning in report.warnings)


def test_labels_are_flipped_by_a_draw_of_their_own(store: Store) -> None:
    report = pair(store, run="r", flip=0.3)
    rows = store.rows(Label)
    assert all(row.label == (row.candidate_key.endswith("g") != row.flipped) for row in rows)
    assert {row.score for row in rows if row.candidate_key.endswith("g")} == {1.0}
    assert report.labels_flipped == sum(row.flipped for row in rows)
    assert 0 < report.labels_flipped < 80
    of_pairs = {row.prompt_key for row in store.rows(Preference) if row.flipped}
    assert of_pairs != {row.prompt_key for row in rows if row.flipped}


def test_the_same_call_again_contradicts_nothing(store: Store) -> None:
    first = pair(store, run="r", flip=0.5)
    again = pair(store, run="r", flip=0.5)
    assert (again.written, again.labels_written, again.labels_refused) == (0, 0, 0)
    assert (again.preferences, again.flipped, again.dropped) == (40, first.flipped, {})


def test_another_share_under_the_same_name_is_refused_where_it_differs(store: Store) -> None:
    pair(store, run="r")
    report = pair(store, run="r", flip=0.5)
    assert report.flipped == 0
    assert report.labels_flipped == 0
    assert report.dropped["contradicts_kept"] == 40 - report.preferences > 0
    assert report.labels_refused == 80 - report.labels > 0
    for rows, count in (("preferences", 40 - report.preferences), ("labels", report.labels_refused)):
        told = f"hold {count} {rows} of best_worst that an earlier call made and this one does not"
        assert any(told in warning for warning in report.warnings)


def test_what_is_picked_does_not_depend_on_the_share(store: Store) -> None:
    """Lengths are balanced before anything is turned about."""
    filters = Filters(length_balanced=True)
    pair(store, run="r", name="clean", filters=filters)
    pair(store, run="r", name="noisy", filters=filters, flip=0.4)
    clean, noisy = ends(store, "clean"), ends(store, "noisy")
    assert 0 < len(clean) < 40
    assert {frozenset(pair) for pair in clean} == {frozenset(pair) for pair in noisy}
    assert any(noisy.values())


@pytest.mark.parametrize("by", ["pairs", "quantile"])
def test_all_labels_flipped(store: Store, by: str) -> None:
    pair(store, run="r", labels=LabelRule(by=by), flip=1.0)  # type: ignore[arg-type]
    assert {(row.candidate_key[-1], row.label, row.flipped) for row in store.rows(Label)} == {
        ("g", False, True),
        ("b", True, True),
    }


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_no_such_share(store: Store, share: float) -> None:
    with pytest.raises(FactoryError, match="is not between 0 and 1"):
        pair(store, run="r", flip=share)


# ---------------------------------------------------------------------------------------------------- in a recipe

LEAST = "name: least\npanel: [{judge: verifier, name: v}]\n"


def load(overrides: object) -> recipes.Recipe:
    return recipes.parse(LEAST, where="least", overrides=list(overrides))  # type: ignore[call-overload]


def test_a_recipe_has_its_pairs_flipped(store: Store) -> None:
    detail = stages.pair(Run(store, load(["pair.flip=0.3"]), "r").at("pair"), 0)
    assert detail["pairs"]["flipped"] == sum(row.flipped for row in store.rows(Preference)) > 0


def test_a_sweep_over_shares_and_methods_shares_what_comes_before_pairing() -> None:
    vary = {"pair.flip": [0, 0.3], "train.config.method": ["dpo", "ipo"]}
    found = sweeps.variants(load, "s", vary)
    assert [v.run for v in found] == [
        "s-flip-0-method-dpo", "s-flip-0-method-ipo", "s-flip-0.3-method-dpo", "s-flip-0.3-method-ipo"
    ]  # fmt: skip
    points = [sweeps.point_between(found[0], other) for other in found[1:]]
    assert points == [Point(found[0].run, 0, step) for step in ("train", "pair", "pair")]
