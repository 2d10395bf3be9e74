"""Faults that pairing has elsewhere, held shut here: labels that are wrong without a word.

Each test names what it is that went wrong in a peer; what is asked of our own pairing is the opposite, from the
judgments in the store to the rows that are trained on.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from judged import both, candidate_of, pairwise, pointwise, prompt_of

from factory.pairing import Filters, LabelRule, PairReport, pair, strategies
from factory.schema import Judgment, Label, Preference
from factory.store import Store

STRATEGIES = [name for name in strategies.names() if not strategies.facts(name)["lineage"]]
WAYS = ("lead", "mean", "majority", "weighted", "one_coin", "dawid_skene", "dependent")
JUDGES = ("v", "w", "x")
ALL_LABELS = ("threshold", "quantile", "pairs")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store", create=True) as opened:
        yield opened


def put(store: Store, keys: str, rows: Sequence[Judgment], run: str = "r", texts: dict[str, str] | None = None) -> None:
    """One prompt with these answers and judgments, in a run of its own."""
    one = prompt_of(f"Tell me about {run}.")
    store.append("prompts", [one])
    answers = [candidate_of(f"{run}{k}", (texts or {}).get(k, f"answer {k}"), prompt=one, run=run) for k in keys]
    store.append("candidates", answers)
    store.append("judgments", [_of_run(row, run) for row in rows])


def _of_run(row: Judgment, run: str) -> Judgment:
    b = None if row.candidate_b is None else run + row.candidate_b
    return replace(row, key=run + row.key, run=run, candidate_a=run + row.candidate_a, candidate_b=b)


def paired(store: Store, run: str = "r", way: str = "lead", strategy: str = "all", by: str = "none") -> PairReport:
    return pair(
        store,
        run=run,
        strategy=strategy,
        combine=way,
        lead="v" if way == "lead" else None,
        judge_weights=dict.fromkeys(JUDGES, 1.0) if way == "weighted" else None,
        labels=LabelRule(by=by),  # type: ignore[arg-type]
    )


def preferred(store: Store, run: str = "r") -> set[tuple[str, str]]:
    rows = store.rows(Preference, {"run": run})
    return {(row.chosen_key.removeprefix(run), row.rejected_key.removeprefix(run)) for row in rows}


# ---------------------------------------------------------------------------------------------- ties become no pairs


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("way", WAYS)
def test_ratings_that_are_all_tied_make_no_preference(store: Store, strategy: str, way: str) -> None:
    """Elsewhere the first of equals became chosen and the last rejected, or both were the same answer."""
    rows = [pointwise(judge, key, 3.0, low=1, high=5) for judge in JUDGES for key in "abcd"]
    put(store, "abcd", rows)
    report = paired(store, way=way, strategy=strategy, by="pairs")
    assert (report.preferences, report.labels, report.dropped) == (0, 0, {"tie": 6})
    assert store.counts()["preferences"] == store.counts()["labels"] == 0


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_answers_that_say_the_same_make_no_preference(store: Store, strategy: str) -> None:
    """Also where a judge prefers one of them: that is its noise, or the order of showing."""
    put(store, "ab", both("v", "a", "b", 1.0, 1.0), texts={"a": "The same.", "b": " The same.\n"})
    report = paired(store, strategy=strategy)
    assert (report.preferences, report.dropped) == (0, {"same_text": 1})


@pytest.mark.parametrize("way", WAYS)
def test_a_split_panel_is_a_tie(store: Store, way: str) -> None:
    """One judge each way and one tie: elsewhere the first judge's word, or ties kept with a coin's verdict."""
    rows = [*both("v", "a", "b", 0.5, 0.5), *both("w", "a", "b", 0.9, 0.9), *both("x", "a", "b", 0.1, 0.1)]
    put(store, "ab", rows)
    report = paired(store, way=way)
    assert (report.preferences, report.dropped) == (0, {"tie": 1})


# ------------------------------------------------------------------------------------- a failure is nobody's verdict


@pytest.mark.parametrize("by", ALL_LABELS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_answer_that_could_not_be_scored_is_neither_chosen_nor_rejected(
    store: Store, strategy: str, by: str
) -> None:
    """Elsewhere a parse failure counted as -1: the answer that nobody scored became the rejected one."""
    rows = [pointwise("v", key, s, low=1, high=5) for key, s in zip("abcd", (5.0, None, 3.0, 1.0), strict=True)]
    put(store, "abcd", rows)
    paired(store, strategy=strategy, by=by)
    touched = {key for pair_of in preferred(store) for key in pair_of}
    assert "b" not in touched
    assert "rb" not in {row.candidate_key for row in store.rows(Label)}


def test_a_failed_order_is_not_averaged_in(store: Store) -> None:
    """Elsewhere the other order alone decided, and with it the judge's liking for the first place."""
    put(store, "ab", both("v", "a", "b", 1.0, None))
    report = paired(store)
    assert (report.preferences, report.dropped) == (0, {"no_verdict": 1})


@pytest.mark.parametrize("way", ["mean", "majority"])
def test_a_failed_judge_is_not_averaged_in(store: Store, way: str) -> None:
    """Two judges found a the better, the third failed on both: its failure takes nothing off the margin."""
    good = [row for judge in ("v", "w") for row in both(judge, "a", "b", 1.0, 1.0)]
    put(store, "ab", [*good, *both("x", "a", "b", None, None)])
    paired(store, way=way)
    (row,) = store.rows(Preference)
    assert (row.margin, row.agreement, row.judges) == (1.0, 1.0, 2)


@pytest.mark.parametrize("way", WAYS)
def test_judges_that_all_failed_say_nothing(store: Store, way: str) -> None:
    """Elsewhere a failed batch was filled with nulls, and nulls compared as equal or as lowest."""
    put(store, "abc", [row for judge in JUDGES for a, b in ("ab", "ac", "bc") for row in both(judge, a, b, None, None)])
    report = paired(store, way=way, by="threshold")
    assert (report.preferences, report.labels, report.dropped) == (0, 0, {"no_verdict": 3})


# ---------------------------------------------------------------------------------------------- the verdict decides


@pytest.mark.parametrize("way", WAYS)
def test_the_verdict_moves_what_is_chosen(store: Store, way: str) -> None:
    """Elsewhere the condition of a swap could never be true: the first answer was always the chosen one."""
    for run, p in (("first", 0.9), ("second", 0.1)):
        put(store, "ab", [row for judge in JUDGES for row in both(judge, "a", "b", p, p)], run=run)
        assert paired(store, run, way).preferences == 1
    assert preferred(store, "first") == {("a", "b")}
    assert preferred(store, "second") == {("b", "a")}


def test_a_judge_that_goes_by_the_place_decides_nothing(store: Store) -> None:
    """Always the answer shown first: text verdicts that disagree are a tie, whatever the key of the answers."""
    rows = [pairwise("v", a, b, 1.0 if order == "a" else 0.0, order) for a, b in ("ab", "bc", "ac") for order in "ab"]
    put(store, "abc", rows)
    assert paired(store).dropped == {"tie": 3}


def test_a_judge_below_the_lead_cannot_water_it_down(store: Store) -> None:
    """Two judges at chance against a verifier: the lead decides, they only show as low agreement."""
    rows = [pointwise("v", "a", 1.0), pointwise("v", "b", 0.0)]
    rows += [*both("w", "a", "b", 0.1, 0.1), *both("x", "a", "b", 0.2, 0.2)]
    put(store, "ab", rows)
    paired(store)
    (row,) = store.rows(Preference)
    assert (row.chosen_key, row.margin, row.agreement) == ("ra", 1.0, pytest.approx(1 / 3))


def test_a_canary_is_no_answer(store: Store) -> None:
    """What a judge says of a stand-in is no verdict on the answer in whose place it stood."""
    rows = [pairwise("v", "a", "b", 0.0, order, canary="empty") for order in ("a", "b")]
    put(store, "ab", [*rows, *both("w", "a", "b", 0.9, 0.9)])
    report = pair(store, run="r", combine="mean", labels=LabelRule(by="none"))
    assert preferred(store) == {("a", "b")}
    assert report.mean_agreement == 1.0


# -------------------------------------------------------------------------------------------- random means by chance


@pytest.mark.parametrize("strategy", ["random", "best_random"])
def test_what_is_called_random_is_drawn_evenly(store: Store, strategy: str) -> None:
    """Elsewhere `max_random` always took the same place in the list. Sixty prompts with three answers that may be
    rejected: each about twenty times."""
    for i in range(60):
        one = prompt_of(f"Tell me about {i}.")
        store.append("prompts", [one])
        store.append("candidates", [candidate_of(f"{key}{i}", prompt=one) for key in "abcd"])
        store.append("judgments", [pointwise("v", f"{key}{i}", float(key == "a")) for key in "abcd"])
    assert paired(store, strategy=strategy).preferences == 60
    rejected = [row.rejected_key[0] for row in store.rows(Preference)]
    assert {row.chosen_key[0] for row in store.rows(Preference)} == {"a"}
    assert all(8 <= rejected.count(key) <= 34 for key in "bcd")


# ---------------------------------------------------------------------------------------------- rows are trained on


CHANCES = st.sampled_from([None, 0.0, 0.2, 0.5, 0.8, 1.0])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), st.sampled_from(STRATEGIES), st.sampled_from(ALL_LABELS), st.booleans())
def test_rows_never_contradict_each_other(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, strategy: str, by: str, balanced: bool
) -> None:
    """Whatever two judges say and in whatever order they lead: no answer over itself, no pair both ways, no answer both
    desirable and not, and every pair is accounted for."""
    with Store.open(tmp_path_factory.mktemp("peers"), create=True) as store:
        rows: list[Judgment] = []
        for judge, (a, b) in itertools.product("vw", itertools.combinations("abcd", 2)):
            rows += both(judge, a, b, data.draw(CHANCES), data.draw(CHANCES))
        put(store, "abcd", rows)
        for lead in data.draw(st.permutations("vw")):
            report = pair(
                store, run="r", lead=lead, strategy=strategy, labels=LabelRule(by=by),  # type: ignore[arg-type]
                filters=Filters(length_balanced=balanced),
            )  # fmt: skip
            assert report.preferences + sum(report.dropped.values()) == report.pairs == 6
        pairs = preferred(store)
        assert all(a != b and (b, a) not in pairs for a, b in pairs)
        labels = [(row.candidate_key, row.label) for row in store.rows(Label)]
        assert len(dict(set(labels))) == len(set(labels))
        assert all(row.margin > 0 and row.weight > 0 for row in store.rows(Preference))
