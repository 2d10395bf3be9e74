"""The views over judgments say what factory/verdicts.py says, and count what the docstrings work out."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from store_rows import AT, call, candidate, judgment

from factory import verdicts
from factory.schema import Judgment, digest
from factory.store import Store

KEYS = sorted(digest("candidate", i) for i in range(4))


def pairwise(number: int, judge: str, pair: tuple[str, str], first: str | None, **more: Any) -> Judgment:
    values: dict[str, Any] = {"kind": "pairwise", "judge": judge, "candidate_a": pair[0], "candidate_b": pair[1],
                              "shown_first": first, "score": None, "prompt_key": "p"}  # fmt: skip
    return judgment(number, **values | more)


def filled(folder: Path, rows: Sequence[Judgment]) -> Store:
    store = Store.open(folder, create=True)
    store.append("judgments", rows)
    lengths = {KEYS[0]: 10, KEYS[1]: 20, KEYS[2]: 30, KEYS[3]: 30}
    store.append("candidates", [candidate(0, key=key, text="x" * n, prompt_key="p") for key, n in lengths.items()])
    return store


def random_judgments(seed: int) -> list[Judgment]:
    """A panel of four: two LLM judges (by probability, by text), one rating judge of two aspects, one verifier; with
    failures, missing orders, canaries, and readings made twice."""
    chance = random.Random(seed)
    rows: list[Judgment] = []

    def add(row: Judgment) -> None:
        rows.append(row)

    for a in range(4):
        for aspect in ("clear", "true"):
            add(judgment(len(rows), judge="rating", candidate_a=KEYS[a], aspect=aspect, prompt_key="p",
                         score=chance.choice([1.0, 3.0, 5.0]), score_low=1.0, score_high=5.0,
                         failure=chance.choice([None] * 9 + ["unreadable"])))  # fmt: skip
        add(judgment(len(rows), judge="verifier", candidate_a=KEYS[a], prompt_key="p", score=chance.choice([0.0, 1.0])))
        for b in range(a + 1, 4):
            for first in ("a", "b"):
                for judge in ("by probability", "by text"):
                    p_a = chance.random() if judge == "by probability" else chance.choice([0.0, 0.5, 1.0])
                    verdict = verdicts.decide(p_a, verdicts.TIE_MARGIN)
                    failed = chance.random() < 0.05
                    for again in range(chance.choice([0, 1, 1, 1, 1, 1, 1, 1, 2])):
                        add(pairwise(len(rows), judge, (KEYS[a], KEYS[b]), first,
                                     p_a=None if failed else p_a, verdict="none" if failed else verdict,
                                     failure="unreadable" if failed else None,
                                     at=AT + timedelta(seconds=again)))  # fmt: skip
                    add(pairwise(len(rows), judge, (KEYS[a], digest("stand-in", b)), first, p_a=1.0, verdict="a",
                                 canary=True, canary_name="empty"))  # fmt: skip
    return rows


@pytest.mark.parametrize("seed", range(12))
def test_verdicts_are_those_of_the_program(tmp_path: Path, seed: int) -> None:
    rows = random_judgments(seed)
    panel = verdicts.read(rows)
    expected = {}
    for judge in panel.judges():
        for a in range(4):
            for b in range(a + 1, 4):
                verdict = panel.verdict(judge, (KEYS[a], KEYS[b]))
                if verdict is not None:
                    expected[judge, KEYS[a], KEYS[b]] = (round(verdict.p_a, 9), verdict.verdict, verdict.flipped)
    found = filled(tmp_path, rows).sql("FROM verdicts").rows()
    assert {
        (r["judge"], r["candidate_a"], r["candidate_b"]): (round(r["p_a"], 9), r["verdict"], r["flipped"])
        for r in found
    } == expected
    assert len(expected) > 10


@pytest.mark.parametrize("seed", range(4))
def test_candidate_scores_are_those_of_the_program(tmp_path: Path, seed: int) -> None:
    rows = random_judgments(seed)
    expected = {
        (judge, key): (round(score.value, 9), round(score.share, 9))
        for judge, scores in verdicts.read(rows).scores.items()
        for key, score in scores.items()
        if score is not None
    }
    found = filled(tmp_path, rows).sql("FROM candidate_scores").rows()
    assert {(r["judge"], r["candidate"]): (round(r["score"], 9), round(r["share"], 9)) for r in found} == expected


def test_agreement_and_judge_stats_count_what_is_there(tmp_path: Path) -> None:
    """Judge x on three pairs of answers of 10, 20, 30 characters: a (short) in both orders; b, then a: flipped, and by
    probabilities .9 and .3 it is a (short); tie in both. Judge y on the first two: a; b (long). So both judged 2 pairs
    and agree on 1; x gives 0 of 2 decided pairs to the longer, y 1 of 2; x flips on 1 of 3."""
    pairs = [(KEYS[0], KEYS[1]), (KEYS[0], KEYS[2]), (KEYS[1], KEYS[2])]
    said = {
        "x": [((0.9, "a"), (0.8, "a")), ((0.9, "a"), (0.3, "b")), ((0.5, "tie"), (0.5, "tie"))],
        "y": [((1.0, "a"), (1.0, "a")), ((0.0, "b"), (0.0, "b"))],
    }
    rows = [
        pairwise(100 * (judge == "y") + 10 * i + (first == "b"), judge, pair, first, p_a=p_a, verdict=verdict)
        for judge, of_pairs in said.items()
        for i, (pair, orders) in enumerate(zip(pairs, of_pairs, strict=False))
        for first, (p_a, verdict) in zip(("a", "b"), orders, strict=True)
    ]
    rows += [
        pairwise(200, "y", pairs[2], "a", failure="unreadable", verdict="none"),
        pairwise(201, "y", pairs[2], "b", p_a=1.0, verdict="a"),
        pairwise(202, "y", pairs[2], "a", p_a=0.0, verdict="b", canary=True, canary_name="empty"),
    ]
    store = filled(tmp_path, rows)
    (agreement,) = store.sql("FROM agreement").rows()
    assert agreement == {
        "run": "r", "judge_1": "x", "judge_2": "y", "items": 2, "agreement": 0.5, "decided": 2,
        "decided_agreement": 0.5,
    }  # fmt: skip
    x, y = store.sql("FROM judge_stats ORDER BY judge").rows()
    assert x == {
        "run": "r", "judge": "x", "judgments": 6, "failures": 0, "mean_score": None, "first_share": 0.75,
        "pairs": 3, "ties": 1, "flip_rate": 1 / 3, "longer_share": 0.0,
    }  # fmt: skip
    assert y == {
        "run": "r", "judge": "y", "judgments": 6, "failures": 1, "mean_score": None, "first_share": 0.4,
        "pairs": 2, "ties": 0, "flip_rate": 0.0, "longer_share": 0.5,
    }  # fmt: skip


def test_aspects_that_differ_from_each_other_are_no_flip(tmp_path: Path) -> None:
    """By text: two aspects say a, one says b, each in both orders."""
    said = {"one": 1.0, "two": 1.0, "three": 0.0}
    rows = [
        pairwise(10 * i + (first == "b"), "x", (KEYS[0], KEYS[1]), first, p_a=p_a, verdict="a" if p_a else "b",
                 aspect=aspect)
        for i, (aspect, p_a) in enumerate(said.items())
        for first in ("a", "b")
    ]  # fmt: skip
    (verdict,) = filled(tmp_path, rows).sql("FROM verdicts").rows()
    assert (round(verdict["p_a"], 9), verdict["verdict"], verdict["flipped"]) == (round(2 / 3, 9), "a", False)


def test_a_judge_without_orders_has_no_flip_rate(tmp_path: Path) -> None:
    store = filled(tmp_path, [judgment(i, candidate_a=KEYS[i], prompt_key="p", score=i / 3) for i in range(4)])
    (stats,) = store.sql("FROM judge_stats").rows()
    assert (stats["pairs"], stats["ties"], stats["flip_rate"], stats["mean_score"]) == (6, 0, None, pytest.approx(0.5))
    assert stats["longer_share"] == 1.0  # of the five pairs that differ in length
    assert store.sql("FROM agreement").rows() == []


def test_what_judges_cost(tmp_path: Path) -> None:
    """Two judgments read from one call, tried twice, count it once an attempt; a program has no row."""
    rows = [
        judgment(0, judge="x", call_key="c1", aspect="one"),
        judgment(1, judge="x", call_key="c1", aspect="two"),
        judgment(2, judge="program"),
    ]
    store = filled(tmp_path, rows)
    tried = [call(1, key="c1", failure="timeout", cost=0.25), call(1, attempt=2, key="c1", cost=None)]
    store.append("calls", tried)
    assert store.sql("FROM judge_cost").rows() == [
        {"run": "r", "judge": "x", "model": "m", "calls": 2, "failed": 1, "tokens": 10, "cost": 0.25,
         "unknown_prices": 1}
    ]  # fmt: skip
