"""Options of judges as they come from a recipe or from -J: what is of the wrong type is told before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from factory.faults import ConfigError, FactoryError
from factory.labelling.panel import PanelMember


@pytest.mark.parametrize(
    ("judge", "given", "told"),
    [
        ("pairwise", {"constitution": 5}, "constitution: must be a text, not 5"),
        ("pairwise", {"principles": 5}, "principles: must be a list of texts or a text, not 5"),
        ("pairwise", {"examples": 5}, "examples: must be a text or a list, not 5"),
        ("pairwise", {"prefix": 5}, "prefix: must be a text, not 5"),
        ("pairwise", {"ties": "yes"}, "ties: must be true or false, not 'yes'"),
        ("pairwise", {"min_mass": True}, "min_mass: must be a number, not True"),
        ("rating", {"aspects": 3}, "aspects: must be a list of texts or a text, not 3"),
        ("constitutional", {"principles_each": "some"}, "must be a whole number or all, not 'some'"),
        ("meta_judge", {"constitution": 5}, "constitution: must be a text, not 5"),
        ("rubric", {"prefix": 1}, "prefix: must be a text or nothing, not 1"),
        ("self_reward", {"constitution": None}, "constitution: must be a text, not None"),
        ("human", {"file": 5}, "file: must be a text, not 5"),
        ("human", {"file": "x.csv", "low": "one"}, "low: must be a number or nothing, not 'one'"),
        ("reward_model", {"model": 5}, "model: must be a text, not 5"),
        ("reward_model", {"model": "m", "dtype": "half"}, "dtype: must be "),
        ("reward_model", {"model": "m", "max_length": 0}, "max_length: must be a whole number from 1 on, not 0"),
        ("reward_model", {"model": "m", "batch_tokens": -1}, "batch_tokens: must be a whole number from 1 on, not -1"),
        ("implicit", {"model": "m", "reference": "r", "beta": "abc"}, "beta: must be a number, not 'abc'"),
        ("implicit", {"model": "m", "reference": "r", "beta": 0}, "beta: must be above 0, not 0"),
        ("implicit", {"model": "m", "reference": "r", "batch_tokens": 0}, "batch_tokens: must be a whole number"),
        ("verifier", {"least": "abc"}, "least: must be a whole number, not 'abc'"),
        ("verifier", {"least": -1}, "least: must be 0 or more, not -1"),
        ("verifier", {"workers": -3}, "workers: must be a whole number from 1 on, not -3"),
        ("verifier", {"seconds": 0}, "seconds: must be above 0, not 0"),
    ],
)
def test_a_wrong_option_is_told(judge: str, given: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        PanelMember.of(judge, name="mine", options=given)
    assert told in caught.value.text()
    assert "options of the judge 'mine'" in caught.value.text()
    assert len(caught.value.faults) == 1


def test_all_of_them_come_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        PanelMember.of("pairwise", options={"constitution": 5, "ties": 1, "reference": False, "prefix": None})
    assert [fault.partition(":")[0] for fault in caught.value.faults] == ["constitution", "ties", "prefix"]


def test_what_a_judge_takes_is_taken(tmp_path: Path) -> None:
    whole: dict[str, Any] = {"min_mass": 1, "principles": (), "max_tokens": None, "examples": []}
    assert PanelMember.of("pairwise", options=whole).judge.kind == "pairwise"
    file = tmp_path / "verdicts.csv"
    file.write_text("candidate_a,candidate_b,verdict\nx,y,a\n")
    assert PanelMember.of("human", options={"file": file}).judge.kind == "pairwise"
    with pytest.raises(FactoryError, match="unexpected keyword argument 'leest'"):
        PanelMember.of("verifier", options={"leest": 3})
