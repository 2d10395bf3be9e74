"""Which pairs are put before people."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from judged import both, candidate_of, prompt_of

from factory.faults import FactoryError, IntegrityError
from factory.schema import Candidate, Judgment
from factory.store import Store
from factory.trust.escalation import escalate, write
from factory.trust.evidence import Evidence, evidence


def found(rows: list[tuple[str, str, float, str]], prompts: dict[str, str] | None = None) -> Evidence:
    """Judgments (judge, first letter of the pair, p_a, prompt) on pairs xa / xb."""
    judgments: list[Judgment] = []
    candidates: dict[str, Candidate] = {}
    for judge, name, p_a, prompt in rows:
        judgments += both(judge, f"{name}a", f"{name}b", p_a, p_a, prompt_key=prompt)
        for key in (f"{name}a", f"{name}b"):
            candidates[key] = replace(candidate_of(key), prompt_key=prompt)
    return evidence(judgments, candidates.values())


def order(found_: Evidence, **options: object) -> list[str]:
    return [one.candidate_a[0] for one in escalate(found_, **options)]  # type: ignore[arg-type]


def test_doubt_and_disagreement_come_first() -> None:
    """x: both sure; y: they contradict each other; z: both tie."""
    rows = [("j", "x", 0.99, "1"), ("k", "x", 0.99, "1"), ("j", "y", 0.9, "2"), ("k", "y", 0.1, "2")]
    rows += [("j", "z", 0.5, "3"), ("k", "z", 0.5, "3")]
    chosen = escalate(found(rows))
    assert {one.candidate_a[0] for one in chosen[:2]} == {"y", "z"}
    by = {one.candidate_a[0]: one for one in chosen}
    assert (by["y"].entropy, by["y"].disagreement, by["y"].abstention) == (pytest.approx(1.0), pytest.approx(1.0), 0.0)
    assert (by["z"].entropy, by["z"].disagreement, by["z"].abstention) == (pytest.approx(1.0), 0.0, 1.0)
    assert by["x"].worth < 0.1


def test_prompts_take_turns() -> None:
    rows = [("j", "x", 0.5, "1"), ("j", "y", 0.5, "1"), ("j", "z", 0.52, "2")]
    assert order(found(rows))[:2] == ["x", "z"]
    assert order(found(rows), most=1) == ["x"]


def test_a_judge_at_chance_stirs_nothing_up_where_gold_is_known() -> None:
    rows = [("good", "x", 0.95, "1"), ("coin", "x", 0.05, "1"), ("good", "y", 0.6, "2"), ("coin", "y", 0.6, "2")]
    assert order(found(rows)) == ["x", "y"]
    assert order(found(rows), weights={"good": 0.8, "coin": 0.0}) == ["y", "x"]


def test_thresholds_known_pairs_and_equal_texts() -> None:
    rows = [("j", "x", 0.8, "1"), ("j", "y", 0.8, "2")]
    base = found(rows)
    assert [one.abstention for one in escalate(base, thresholds={"j": 0.75})] == [0.0, 0.0]
    assert [one.abstention for one in escalate(base, thresholds={"j": 0.85})] == [1.0, 1.0]
    assert [one.abstention for one in escalate(base, thresholds={"j": None})] == [1.0, 1.0]
    assert order(base, known=[("xa", "xb")]) == ["y"]
    same = {key: replace(c, text="same") if key[0] == "x" else c for key, c in base.candidates.items()}
    assert order(replace(base, candidates=same)) == ["y"]
    assert order(base, weights={"j": 0.0}) == ["x", "y"]


def test_a_pair_that_nobody_answered_is_worth_a_look() -> None:
    rows = both("j", "xa", "xb", None, None, prompt_key="1") + both("j", "ya", "yb", 0.9, 0.9, prompt_key="2")
    candidates = [
        replace(candidate_of(k), prompt_key=p) for k, p in (("xa", "1"), ("xb", "1"), ("ya", "2"), ("yb", "2"))
    ]
    first = escalate(evidence(rows, candidates))[0]
    assert (first.candidate_a, first.entropy, first.abstention, first.p_a) == ("xa", 1.0, 1.0, None)


def test_the_sheet(tmp_path: Path) -> None:
    prompt = prompt_of("What is a river?")
    base = found([("j", "x", 0.5, prompt.key), ("j", "y", 0.6, prompt.key)])
    with Store.open(tmp_path / "store", create=True) as store:
        store.append("prompts", [prompt])
        sheet = tmp_path / "people.csv"
        assert write(store, base, escalate(base), sheet) == 2
        with sheet.open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert {row["prompt"] for row in rows} == {"user: What is a river?"}
        assert {frozenset((row["candidate_a"], row["candidate_b"])) for row in rows} == {
            frozenset(("xa", "xb")), frozenset(("ya", "yb")),
        }  # fmt: skip
        assert all(row["verdict"] == "" for row in rows)
        with pytest.raises(FactoryError, match="there already"):
            write(store, base, escalate(base), sheet)
        with pytest.raises(IntegrityError, match="1 prompts"):
            write(store, (lost := found([("j", "x", 0.5, "gone")])), escalate(lost), tmp_path / "more.csv")
