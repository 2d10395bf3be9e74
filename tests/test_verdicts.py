"""Verdicts and quarantine: which batches count, by what their canaries said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, strategies as st
from judged import both, pointwise

from factory import verdicts
from factory.judges.canaries import CANARIES, stand_in_key
from factory.schema import Judgment
from factory.stats.intervals import wilson
from factory.verdicts import FEWEST_CANARIES, TOLERATED, Seen

KINDS = sorted(CANARIES)


def in_batch(rows: Sequence[Judgment], batch: str) -> list[Judgment]:
    return [replace(row, batch=batch, key=f"{row.key}/{batch}") for row in rows]


def real(batch: str, count: int = 3, judge: str = "x") -> list[Judgment]:
    """Decided pairs of a batch."""
    return [row for n in range(count) for row in in_batch(both(judge, f"{batch}{n}", f"{batch}{n}~", 0.9, 0.9), batch)]


def shown(batch: str, fooled: int, sound: int, tied: int = 0, judge: str = "x") -> list[Judgment]:
    """Canaries of a batch: b is the canary, so that 0.1 prefers it."""
    chances = [0.1] * fooled + [0.9] * sound + [0.5] * tied
    return [
        row
        for n, p in enumerate(chances)
        for row in in_batch(both(judge, f"{batch}-c{n}", f"{batch}-c{n}~", p, p, canary=KINDS[n % 5]), batch)
    ]


def kept(rows: Sequence[Judgment], **more: bool) -> set[str]:
    """Batches whose pairs count."""
    return {a[0] for found in verdicts.read(rows, **more).pairs.values() for a, _ in found}


def test_a_batch_whose_canaries_fooled_the_judge_does_not_count() -> None:
    """Three of five in one batch, none of fifteen in the others: 3 of 20 are not beyond what is tolerated."""
    rows = real("p") + shown("p", 3, 2)
    for name in "qrs":
        rows += real(name) + shown(name, 0, 5)
    assert kept(rows) == {"q", "r", "s"}
    assert kept(rows, quarantine=False) == {"p", "q", "r", "s"}
    (found,) = verdicts.quarantined(rows).values()
    assert (found.judge, found.of, found.fooled, found.decided) == ("x", "batch", 3, 5)
    assert found.why() == "x preferred 3 of its batch's 5 decided canaries to real answers"


def test_a_judge_at_chance_loses_all_its_batches_the_lucky_ones_too() -> None:
    rows = []
    for name, fooled in zip("pqrstuvw", (2, 3, 1, 2, 4, 2, 3, 2), strict=True):
        rows += real(name) + shown(name, fooled, 5 - fooled)
    assert kept(rows) == set()
    assert {found.of for found in verdicts.quarantined(rows).values()} == {"batch", "judge"}


def test_a_batch_too_small_for_canaries_goes_with_the_judges_others() -> None:
    small = real("z") + shown("z", 0, 1)
    good = [row for name in "pq" for row in real(name) + shown(name, 0, 5)]
    bad = [row for name in "pq" for row in real(name) + shown(name, 5, 0)]
    assert kept(small) == {"z"}
    assert kept(small + good) == {"p", "q", "z"}
    assert kept(small + bad) == set()


def test_a_judge_that_falls_for_one_kind_of_canary_is_believed_about_answers() -> None:
    rows = [row for n in range(40) for row in real(f"{n:02d}") + shown(f"{n:02d}", 1, 4)]
    assert verdicts.quarantined(rows) == {}


def test_ties_fool_nobody_and_decide_nothing() -> None:
    rows = real("p") + shown("p", 0, 0, tied=5)
    assert verdicts.quarantined(rows) == {}
    assert [canary.tied for canary in verdicts.canaries(rows)["x"]] == [True] * 5
    assert verdicts.quarantined(real("p") + shown("p", 3, 0, tied=97)) != {}


def test_another_judges_canaries_say_nothing() -> None:
    rows = real("p") + shown("p", 0, 5) + real("q", judge="y") + shown("q", 5, 0, judge="y")
    panel = verdicts.read(rows)
    assert panel.judges() == ["x"]
    assert set(verdicts.quarantined(rows)) == {"q"}


def test_what_has_no_batch_is_never_in_quarantine() -> None:
    """Rows from before batches were kept, and those of programs."""
    old = [replace(row, batch="") for row in real("p") + shown("p", 5, 0)]
    assert verdicts.quarantined(old) == {}
    assert kept(old) == {"p"}


def test_canaries_of_before_speak_of_the_judge() -> None:
    old = [replace(row, batch="") for row in shown("p", 5, 0)]
    assert kept(old + real("q") + shown("q", 0, 2)) == set()


def test_a_canary_that_vouches_for_two_batches_is_counted_once_by_its_latest_reading() -> None:
    first = shown("p", 1, 0)
    again = [
        replace(row, batch="q", key=row.key + "q", p_a=0.9, verdict="a", at=row.at.replace(year=2026)) for row in first
    ]
    assert [canary.fooled for canary in verdicts.canaries(first + again)["x"]] == [False]
    assert [canary.fooled for canary in verdicts.canaries([*again, *first])["x"]] == [False]


def test_a_pointwise_judge_is_fooled_by_a_canary_above_the_answer_it_stood_in_for() -> None:
    rows = [row for n in range(5) for row in in_batch([pointwise("r", f"a{n}", 0.3)], "p")]
    for n, score in enumerate((0.9, 0.8, 0.7, 0.3, 0.1)):
        rows += in_batch([pointwise("r", stand_in_key(KINDS[n], f"a{n}"), score, canary=KINDS[n])], "p")
    assert [(c.fooled, c.tied) for c in sorted(verdicts.canaries(rows)["r"])].count((True, False)) == 3
    assert Seen(KINDS[3], None, True) in verdicts.canaries(rows)["r"]
    assert verdicts.read(rows).scores == {}
    assert len(verdicts.read(rows, quarantine=False).scores["r"]) == 5


@given(st.integers(0, 12), st.integers(0, 12))
def test_the_rule(fooled: int, sound: int) -> None:
    """At least three decided, and the 95% Wilson interval of the share that fooled lies above one fifth."""
    out = bool(verdicts.quarantined(real("p") + shown("p", fooled, sound)))
    n = fooled + sound
    assert out == (n >= FEWEST_CANARIES and wilson(fooled, n).low > TOLERATED)


@pytest.mark.parametrize(("fooled", "decided"), [(2, 3), (3, 4), (3, 5), (5, 9)])
def test_the_counts_that_the_docstring_names_are_the_least(fooled: int, decided: int) -> None:
    assert verdicts.quarantined(real("p") + shown("p", fooled, decided - fooled))
    assert not verdicts.quarantined(real("p") + shown("p", fooled - 1, decided - fooled + 1))


@given(st.permutations(real("p") + shown("p", 3, 2) + real("q") + shown("q", 0, 2)))
def test_the_order_of_rows_does_not_matter(rows: list[Judgment]) -> None:
    assert kept(rows) == {"q"}
