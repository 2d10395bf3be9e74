"""Gold from files and from judges of the run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from judged import both, candidate_of, pairwise, pointwise

from factory.faults import FactoryError
from factory.trust.evidence import Evidence, evidence
from factory.trust.gold import find_gold


def found() -> Evidence:
    candidates = [candidate_of(key) for key in "abc"]
    persons = {"ann": "a", "bob": "tie", "cho": "a"}
    human = replace(pairwise("human", "a", "b", 0.9, None), detail={"persons": persons})
    return evidence(
        [*both("j", "a", "b", 0.9, 0.9), pointwise("v", "a", 0.2), pointwise("v", "b", 0.7), human], candidates
    )


def written(folder: Path, *rows: dict[str, Any]) -> str:
    path = folder / "gold.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_votes_of_several_people_are_averaged(tmp_path: Path) -> None:
    said = [("ann", "y", "x", "a"), ("bob", "x", "y", "a"), ("cho", "x", "y", "tie")]
    rows = [{"candidate_a": a, "candidate_b": b, "verdict": verdict, "person": p} for p, a, b, verdict in said]
    run = evidence(both("j", "x", "y", 0.9, 0.9), [candidate_of("x"), candidate_of("y")])
    gold = find_gold(written(tmp_path, *rows), run)
    assert gold.people["ann"] == {("x", "y"): "b"}
    assert gold.pairs() == {("x", "y"): "tie"}  # 0, 1 and 1/2


def test_scores_are_verdicts_on_pairs(tmp_path: Path) -> None:
    scores = {"a": 4, "b": 4.5, "c": 4}
    rows = [{"candidate_a": key, "score": score, "person": "ann"} for key, score in scores.items()]
    gold = find_gold(written(tmp_path, *rows), found())
    assert gold.pairs() == {("a", "b"): "b", ("a", "c"): "tie", ("b", "c"): "a"}
    assert gold.scores == scores


def test_answers_of_other_runs_are_counted(tmp_path: Path) -> None:
    known = {"candidate_a": "a", "candidate_b": "c", "verdict": "b"}
    gold = find_gold(written(tmp_path, known, known | {"candidate_b": "zzz"}), found())
    assert gold.pairs() == {("a", "c"): "b"}
    assert gold.notes == ("1 verdicts are on answers that are not among these",)
    with pytest.raises(FactoryError, match="no verdict on two answers"):
        find_gold(written(tmp_path, known | {"candidate_b": "zzz"}), found())


def test_judges_of_the_run() -> None:
    assert find_gold("human", found()).people == {
        "ann": {("a", "b"): "a"}, "bob": {("a", "b"): "tie"}, "cho": {("a", "b"): "a"},
    }  # fmt: skip
    assert find_gold("j", found()).people == {"j": {("a", "b"): "a"}}
    verifier = find_gold("v", found())
    assert (verifier.people, verifier.scores) == ({"v": {("a", "b"): "b"}}, {"a": 0.2, "b": 0.7})
    with pytest.raises(FactoryError, match="neither a file nor a judge") as fault:
        find_gold("humna", found())
    assert "human, j, v" in fault.value.todo
